"""The time that an arm takes for the sizes that traffic has, and how much less than the reference.

Sizes between measured ones can be interpolated where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moh_deploy.decision.cost.decided import Decided, DecidedArm, DecidedLatency
from moh_deploy.decision.cost.estimate import Estimate, derived, exactly, weighted
from moh_deploy.decision.cost.traffic import SizedRequests
from moh_deploy.errors import ConfigError
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.system.suggest import shortened


@dataclass(frozen=True)
class Place:
    """Where a size of traffic lies among the measured ones.

    Attributes:
        indices: Of the measured sizes that stand for it: one, or its two neighbours.
        weights: How much each counts.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_extrapolated(self) -> bool:
        """It was not measured itself."""
        return len(self.indices) > 1


@dataclass(frozen=True)
class RunTimes:
    """Times of one arm at the sizes of traffic.

    Attributes:
        ms: Of a run, one for each.
        saved_ms: How much less than the reference; None of the reference.
        gain: The same as a share of the reference's time.
        energy_mj: Of a run; None where it was not counted at all sizes.
    """

    ms: tuple[Estimate, ...]
    saved_ms: tuple[Estimate, ...] | None
    gain: tuple[Estimate, ...] | None
    energy_mj: tuple[float, ...] | None


def places_of(
    requests: Sequence[SizedRequests], measured: Sequence[Mapping[str, int]], *, between: bool
) -> tuple[Place, ...]:
    """Find each size of traffic among the measured ones.

    Args:
        requests: The traffic.
        measured: Sizes of the plan.
        between: Sizes between two measured ones, which differ in one dimension, are allowed.

    Raises:
        ConfigError: There are others; the message has all, as a plan names them.
    """
    found = [_place(one.sizes, measured, between) for one in requests]
    missing = [one for one, place in zip(requests, found, strict=True) if place is None]
    if missing:
        share = sum(one.share for one in missing)
        listed = shortened(
            "{" + ", ".join(f"{name}: {size}" for name, size in one.sizes.items()) + "}"
            for one in missing
        )
        beyond = " or lie between two of them" if between else ""
        raise ConfigError(
            f"traffic has sizes that were not measured{beyond}, {100 * share:.3g} % of requests."
            f" Add to `sizes` of the plan: {listed}.",
            hint=""
            if between
            else "--extrapolate takes times between two measured sizes for sizes that lie between.",
        )
    return tuple(one for one in found if one is not None)


def _place(
    sizes: Mapping[str, int], measured: Sequence[Mapping[str, int]], between: bool
) -> Place | None:
    if sizes in measured:
        return Place((list(measured).index(sizes),), (1.0,))
    if not between:
        return None
    for name, size in sizes.items():
        # Neighbours that differ from it in this dimension only.
        line = {
            one[name]: index
            for index, one in enumerate(measured)
            if {**one, name: size} == dict(sizes)
        }
        below = max((one for one in line if one < size), default=None)
        above = min((one for one in line if one > size), default=None)
        if below is not None and above is not None:
            share = (size - below) / (above - below)
            return Place((line[below], line[above]), (1 - share, share))
    return None


def run_times(decided: Decided, arm: DecidedArm, places: Sequence[Place]) -> RunTimes:
    """Return the times of an arm."""
    reference = decided.served[0]
    ms = [_mean(one) for one in arm.latency]
    saved = gain = None
    if arm.name != reference.name:
        base = [_mean(one) for one in reference.latency]
        gains = _gains(decided, arm)
        saved = _at(_products(base, gains), places)
        # The reference's own interval says nothing of the ratio.
        known = [exactly(one.value) for one in base]
        shares = zip(_at(_products(known, gains), places), _at(known, places), strict=True)
        gain = tuple(derived(lambda less, whole: less / whole, *pair) for pair in shares)
    energy = [one.energy_mj for one in arm.latency]
    counted = [one for one in energy if one is not None]
    has_all = len(counted) == len(energy)
    return RunTimes(
        _at(ms, places),
        saved,
        gain,
        tuple(_sum(counted, one) for one in places) if has_all else None,
    )


def _products(times: Sequence[Estimate], gains: Sequence[Estimate]) -> list[Estimate]:
    pairs = zip(times, gains, strict=True)
    return [derived(lambda time, gain: time * gain, *pair) for pair in pairs]


def _mean(one: DecidedLatency) -> Estimate:
    assert one.mean_ms is not None, f"{sizes_text(one.sizes)} was let through without an interval"
    return one.mean_ms


def _at(figures: Sequence[Estimate], places: Sequence[Place]) -> tuple[Estimate, ...]:
    return tuple(weighted([figures[index] for index in one.indices], one.weights) for one in places)


def _sum(figures: Sequence[float], place: Place) -> float:
    return sum(figures[i] * weight for i, weight in zip(place.indices, place.weights, strict=True))


def _gains(decided: Decided, arm: DecidedArm) -> list[Estimate]:
    """Return the share of the reference's mean that an arm saves, at each of the sizes.

    Arms took turns, and what disturbs both cancels in the ratio of each pair of blocks: where the
    plan compared medians, that interval counts, which is much narrower than both arms' own.
    """
    reference = decided.served[0]
    paired = [one for one in arm.promises if one.kind == "latency"]
    found = []
    for index, (ours, theirs) in enumerate(zip(arm.latency, reference.latency, strict=True)):
        mean, base = _mean(ours), _mean(theirs)
        ratio = mean.value / base.value
        low, high = mean.low / base.high, mean.high / base.low
        if decided.quantile == 0.5 and len(paired) == len(arm.latency):
            one = paired[index]
            ends = [end for end in (one.estimate, one.low, one.high) if isinstance(end, float)]
            if len(ends) == 3 and ends[0] < 1:
                gain, least, most = ends
                low, high = ratio * (1 - most) / (1 - gain), ratio * (1 - least) / (1 - gain)
        found.append(Estimate(1 - ratio, 1 - high, 1 - low))
    return found
