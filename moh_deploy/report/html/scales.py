"""Where numbers lie on an axis, in percent of its length: drawings grow with the page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float  # In percent of the axis
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float  # Left end, above 0 on a logarithmic axis
    high: float  # Right end, above `low`
    ticks: tuple[Tick, ...]  # Labelled places, ascending
    is_log: bool  # Equal ratios are equally far apart, not equal differences

    def at(self, value: float) -> float:
        """Return where a number lies, in percent; what lies outside is at the nearer end."""
        if self.is_log and value <= 0:
            return 0.0
        return round(100 * min(1.0, max(0.0, _share(self.low, self.high, value, self.is_log))), 2)


def decades(values: Iterable[float], *, most_ticks: int = 6) -> Scale:
    """Return a logarithmic axis of whole decades that holds all values; 0, NaN, infinity aside."""
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)] or [0.0]
    # What float64 holds at its very ends is drawn at those of the axis.
    first = min(299, max(-300, math.floor(min(logs))))
    last = max(first + 1, min(300, math.ceil(max(logs))))
    step = math.ceil((last - first) / (most_ticks - 1))
    span = last - first
    ticks = tuple(
        Tick(round(100 * (power - first) / span, 2), _power(power))
        for power in range(first, last + 1, step)
    )
    return Scale(10.0**first, 10.0**last, ticks, is_log=True)


def round_numbers(low: float, high: float, *, is_log: bool, most_ticks: int = 6) -> Scale:
    """Return an axis that holds both numbers, with ticks at round ones."""
    if not high > low:
        low, high = (low / 1.1, high * 1.1) if low > 0 else (low - 1, high + 1)
    numbers = _numbers(low, high, is_log=is_log, most=most_ticks)
    ticks = tuple(
        Tick(round(100 * _share(low, high, number, is_log), 2), f"{number:.6g}")
        for number in numbers
    )
    return Scale(low, high, ticks, is_log)


def _share(low: float, high: float, value: float, is_log: bool) -> float:
    if is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _numbers(low: float, high: float, *, is_log: bool, most: int) -> list[float]:
    """Return round numbers between the two: 1, 2, 5, 10, or 1, 10, or 1, 100, or equal steps."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for digits, step in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
            powers = range(first, last + 1, step)
            every = [digit * 10.0**power for power in powers for digit in digits]
            numbers = [value for value in every if low <= value <= high]
            if 2 <= len(numbers) <= most + 1:
                return numbers
    return _steps(low, high, most)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between the two."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(first, last + 1)]


def _power(power: int) -> str:
    return f"{10.0**power:g}" if -3 <= power <= 3 else f"1e{power}"
