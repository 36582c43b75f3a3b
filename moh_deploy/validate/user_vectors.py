"""Inputs, and maybe expected outputs, in an npz file of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moh_deploy.backends.input_check import check_inputs
from moh_deploy.errors import ConfigError
from moh_deploy.npz import Array, read_npz
from moh_deploy.package import Manifest


@dataclass(frozen=True)
class UserVectors:
    """What a file holds.

    Attributes:
        sizes: Dimension sizes of the inputs.
        inputs: Input name to array, for every input of the model.
        expected: Output name to array, for the outputs the file holds.
    """

    sizes: dict[str, int]
    inputs: dict[str, Array]
    expected: dict[str, Array]


def read_user_vectors(path: Path, manifest: Manifest) -> UserVectors:
    """Read inputs by name, or by position if no member is named like one.

    Members named like outputs are expectations.

    Raises:
        ConfigError: The file cannot be read, or what it holds does not fit the model's inputs.
    """
    members = read_npz(path, error=ConfigError)
    input_names = [spec.name for spec in manifest.inputs]
    output_names = {spec.name for spec in manifest.outputs} - set(input_names)
    expected = {name: array for name, array in members.items() if name in output_names}
    inputs = {name: array for name, array in members.items() if name not in output_names}
    try:
        if inputs and not inputs.keys() & set(input_names):
            inputs = _by_position(inputs, input_names)
        sizes = check_inputs(manifest.inputs, inputs)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    return UserVectors(sizes, inputs, expected)


def _by_position(members: dict[str, Array], names: list[str]) -> dict[str, Array]:
    if len(members) != len(names):
        raise ConfigError(
            f"members {_listed(members)} are none of the model's inputs, and {len(members)} are not"
            f" enough or too many to be taken by position: expected {_listed(names)}."
        )
    return dict(zip(names, members.values(), strict=True))


def _listed(names: dict[str, Array] | list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
