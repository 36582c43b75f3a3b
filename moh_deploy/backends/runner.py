"""What every backend gives: something that runs the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from moh_deploy.npz import Array

Kernels = Literal["auto", "off", "require"]
LayerImpl = Literal["kernel", "function"]


class Runner(Protocol):
    """A loaded model."""

    @property
    def layer_impl(self) -> Mapping[str, LayerImpl]:
        """Name of each MoH node to what runs it, as the runtime itself reports it."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: Name to array, for every input.

        Returns:
            Name to array, for every output, extra outputs included.

        Raises:
            ConfigError: An input is missing, unknown, or of a wrong dtype or shape.
            BackendError: The runtime failed.
        """
