"""The inputs that a package is measured on: recorded ones, or the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import Array
from moh_deploy.validate.samples import npz_files
from moh_deploy.validate.user_vectors import read_user_vectors

RECORDED_INPUTS = "recorded"


@dataclass(frozen=True)
class InputSet:
    """Inputs of one run of the model.

    Attributes:
        name: The file, `recorded` or `random`.
        sizes: Dimension sizes.
        inputs: Input name to array.
        weight: How often this run counts.
    """

    name: str
    sizes: dict[str, int]
    inputs: dict[str, Array]
    weight: float


def input_sets(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float]
) -> list[InputSet]:
    """Return the inputs in the files; without files, those of the run at the example's sizes.

    Args:
        package: The package.
        paths: npz files, as `moh-deploy run` takes them, or directories of them.
        weights: One a file; without, each counts 1.

    Raises:
        ConfigError: A file does not fit the model, or a directory has none; weights do not fit the
            files.
    """
    files = npz_files(paths)
    weights = weights or [1.0] * len(files)
    if len(weights) != len(files):
        raise ConfigError(
            f"weights given: {len(weights)}, files of inputs: {len(files)}; expected one weight for"
            " each file, or none."
        )
    for weight in weights:
        # This form refuses NaN, too.
        if not 0 < weight < float("inf"):
            raise ConfigError(f"a weight is {weight:g}, expected a number above 0.")
    if files:
        read = [read_user_vectors(path, package.manifest) for path in files]
        return [
            InputSet(str(path), one.sizes, one.inputs, weight)
            for path, one, weight in zip(files, read, weights, strict=True)
        ]
    if not package.vectors:
        raise ConfigError(
            f"{package.root} holds no recorded inputs.", hint="Give some: --inputs FILE.npz."
        )
    # The first recorded run is the one at the example's sizes.
    recorded = package.vectors[0]
    return [InputSet(RECORDED_INPUTS, recorded.sizes, recorded.inputs, 1.0)]
