"""The variants of a model that tell errors of kernels, errors of routers, and rounding apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.variants import Noise


class Variants(Protocol):
    """Opens variants of a model in which the gates of each layer are inputs.

    They are fed as `forced_gates(name)`; the routers' own are returned as `computed_gates(name)`.
    """

    def why_not_forced(self) -> str | None:
        """Return why the gates cannot be fed; None if they can."""

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        """Open the model as it is judged.

        Args:
            gates: Name of each layer's gates to their dtype.
            inner: Names of inner values to return besides.
        """

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open the model with something that rounding moves.

        Args:
            noise: What moves: see `Noise`.
            gates: Name of each layer's gates to their dtype.
            inner: Names of inner values to return besides.

        Returns:
            None if the model has nothing that could move so.
        """
