"""Compute the size from which one alternative is faster than another, from times of both.

Between two sizes that were timed, the logarithm of the ratio of both alternatives' times is taken
to be a straight line over the logarithm of the size, and so are the ends of its interval. Beyond
the smallest and the largest nothing is guessed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from moh_deploy.decision.decide import SizedTimes
from moh_deploy.decision.latency_promise import log_ratio
from moh_deploy.report.report import in_json


@dataclass(frozen=True)
class SizedGain:
    """The share of its rival's time that an alternative saves at one size."""

    size: int
    gain: float  # 0.1 is a tenth less; below 0 it is slower
    low: float  # the true gain is above this, with the plan's confidence
    high: float  # and below this


@dataclass(frozen=True)
class Crossing:
    """A size at which both alternatives take the same time."""

    size: float  # where it is by what was measured
    # It is not below this, with the plan's confidence; None: it may be below all that was timed.
    low: float | None
    high: float | None  # it is not above this; None: it may be beyond all that was timed
    begins: bool  # the alternative is faster above it; else below it


@dataclass(frozen=True)
class SizeBreakEven:
    """Where an alternative breaks even with another along one dimension."""

    arm: str
    rival: str
    dim: str  # the dimension, such as `batch`
    others: Mapping[str, int]  # sizes of all other dimensions
    gains: tuple[SizedGain, ...]  # at each size that was timed, ascending
    crossings: tuple[Crossing, ...]  # where it begins or stops to be faster, ascending

    @property
    @in_json()
    def outcome(self) -> str:
        """Where it is faster, in words."""
        texts = []
        for crossing in self.crossings:
            word = "faster from" if crossing.begins else "slower from"
            text = f"{word} {self.dim} {_rounded(crossing.size)} on"
            if crossing.low != crossing.high:  # else of times without intervals
                low = "below all timed" if crossing.low is None else _rounded(crossing.low)
                high = "beyond all timed" if crossing.high is None else _rounded(crossing.high)
                text += f" ({low} to {high})"
            texts.append(text)
        if texts:
            return ", ".join(texts)
        first, last = self.gains[0].size, self.gains[-1].size
        word = "faster" if self.gains[0].gain > 0 else "slower"
        text = f"{word} throughout: no crossing between {self.dim} {first} and {last}"
        unsure = [str(gain.size) for gain in self.gains if gain.low <= 0 <= gain.high]
        return f"{text}, not told at {', '.join(unsure)}" if unsure else text


def size_break_evens(
    times: Sequence[SizedTimes],
    pairs: Sequence[tuple[str, str]],
    *,
    quantile: float,
    confidence: float,
) -> tuple[SizeBreakEven, ...]:
    """Find where alternatives break even, along each dimension that was timed at two sizes or more.

    Args:
        times: Of all alternatives, at each of the sizes.
        pairs: Names of an alternative and of its rival.
        quantile: Of the times that are compared.
        confidence: Of each interval by itself.
    """
    found: list[SizeBreakEven] = []
    for alternative, rival in pairs:
        # Both ran in the same rounds: what disturbed both cancels.
        ratios = [log_ratio(t.wall_ms[alternative], t.wall_ms[rival], quantile) for t in times]
        gains = []
        for ratio in filter(None, ratios):
            low, high = ratio.interval(confidence)
            gains.append((-math.expm1(ratio.mean), -math.expm1(high), -math.expm1(low)))
        # None of too few rounds for an interval: then nothing is told of the pair.
        if len(gains) == len(ratios):
            found += along_lines(alternative, rival, [time.sizes for time in times], gains)
    return tuple(found)


def along_lines(
    alternative: str,
    rival: str,
    sizes: Sequence[Mapping[str, int]],
    gains: Sequence[tuple[float, float, float]],
) -> Iterator[SizeBreakEven]:
    """Yield where an alternative breaks even along each dimension that has two sizes or more.

    Args:
        sizes: At which both were timed.
        gains: At each of them, and its ends.
    """
    # A line: all sizes that differ in this dimension alone.
    for dim in sizes[0] if sizes else ():
        lines: dict[tuple[tuple[str, int], ...], list[SizedGain]] = {}
        for mapping, gain in zip(sizes, gains, strict=True):
            others = tuple((name, size) for name, size in mapping.items() if name != dim)
            lines.setdefault(others, []).append(SizedGain(mapping[dim], *gain))
        for others, line in lines.items():
            # A size of 0, an empty cache, lies on no line over the logarithm of sizes.
            timed = (gain for gain in line if gain.size)
            along = tuple(sorted(timed, key=lambda gain: gain.size))
            if len(along) > 1:
                crossed = tuple(crossings(along))
                yield SizeBreakEven(alternative, rival, dim, dict(others), along, crossed)


def crossings(gains: Sequence[SizedGain]) -> Iterator[Crossing]:
    """Yield where gains go through 0, ascending."""
    for at, (before, after) in enumerate(pairwise(gains)):
        # A gain of exactly 0 is no gain.
        if (before.gain > 0) == (after.gain > 0):
            continue
        yield Crossing(
            size=_zero(before, after, before.gain, after.gain),
            low=_sure_from(list(reversed(gains[: at + 1])), after),
            high=_sure_from(gains[at + 1 :], before),
            begins=after.gain > 0,
        )


def _sure_from(outwards: Sequence[SizedGain], inside: SizedGain) -> float | None:
    """Return the size from which on, outwards, the alternative is surely faster, or slower.

    Args:
        outwards: The sizes on one side of a crossing, the nearest first.
        inside: The nearest on the other side.
    """
    is_faster = outwards[0].gain > 0
    for outward in outwards:
        if (outward.gain > 0) != is_faster:
            return None  # Another crossing comes first, and nothing is sure before it.
        ends = (inside.low, outward.low) if is_faster else (inside.high, outward.high)
        if (ends[1] > 0) if is_faster else (ends[1] < 0):
            return _zero(inside, outward, *ends)
        inside = outward
    return None


def _zero(left: SizedGain, right: SizedGain, of_left: float, of_right: float) -> float:
    """Return the size between two at which a gain would be 0."""
    logs = math.log1p(-of_left), math.log1p(-of_right)
    share = logs[0] / (logs[0] - logs[1])
    return math.exp((1 - share) * math.log(left.size) + share * math.log(right.size))


def _rounded(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.2g}"
