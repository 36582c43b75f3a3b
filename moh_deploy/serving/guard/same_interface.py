"""Refuse a second model that does not answer the same requests as the first."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.base import ModelInterface


def require_same_interface(what: str, ours: ModelInterface, theirs: ModelInterface) -> None:
    """Check that names, dtypes and ranks of inputs and outputs agree.

    Args:
        what: The second model; it opens the error message.
        ours: The first model.
        theirs: The second one.

    Raises:
        ConfigError: They do not.
    """
    for kind, mine, others in (
        ("inputs", ours.inputs, theirs.inputs),
        ("outputs", ours.outputs, theirs.outputs),
    ):
        if _signature(mine) != _signature(others):
            raise ConfigError(
                f"{what} has the {kind} {_signature(others)}, expected {_signature(mine)}.",
                hint="Both are given the same requests: names, dtypes and ranks have to agree.",
            )


def _signature(tensors: Sequence[TensorInfo]) -> list[tuple[str, str, int]]:
    return sorted((one.name, one.dtype, len(one.shape)) for one in tensors)
