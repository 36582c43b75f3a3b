"""A figure with the interval that its inputs leave, and figures derived from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Estimate:
    """A figure.

    Attributes:
        value: What it is with every input as it was given or measured.
        low: The least that it is within the intervals of its inputs.
        high: And the most.
    """

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high


def exactly(value: float) -> Estimate:
    """Return a figure that is known."""
    return Estimate(value, value, value)


def derived(function: Callable[..., float], *inputs: Estimate) -> Estimate:
    """Return what a function makes of its inputs: its interval holds all combinations of ends.

    Args:
        function: It rises or falls with each input, so that ends are at ends.
        inputs: Its arguments.
    """
    corners = [function(*ends) for ends in product(*(estimate.ends for estimate in inputs))]
    value = function(*(estimate.value for estimate in inputs))
    return Estimate(value, min(corners), max(corners))
