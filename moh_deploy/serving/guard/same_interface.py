"""Refuse a second model that does not answer the same requests as the first."""

from __future__ import annotations

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import ModelInterface


def require_same_interface(name: str, ours: ModelInterface, theirs: ModelInterface) -> None:
    """Check that names, dtypes and ranks of inputs and outputs agree.

    Args:
        name: The second model; it opens the error message.
        ours: The first model.
        theirs: The second model.

    Raises:
        ConfigError: They differ.
    """
    for kind in ("inputs", "outputs"):
        expected, got = (
            sorted(
                (tensor.name, tensor.dtype, len(tensor.shape)) for tensor in getattr(model, kind)
            )
            for model in (ours, theirs)
        )
        if got != expected:
            raise ConfigError(
                f"{name} has the {kind} {got}, expected {expected}.",
                hint="Both are given the same requests: names, dtypes and ranks have to agree.",
            )
