"""Price every arm of a decision for the traffic of a team."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from moh_deploy.decision.cost.decided import Decided, DecidedArm
from moh_deploy.decision.cost.prices import BillTerms, Estimate, Prices, paid_back
from moh_deploy.decision.cost.report import (
    ArmCost,
    CostReport,
    Pays,
    SizeCost,
    SizeOutcome,
    TrafficShare,
)
from moh_deploy.decision.cost.traffic import SizedRequests, Traffic
from moh_deploy.decision.latency_promise import MOST_MEAN_OVER_MEDIAN, redrawn_means, tail_of
from moh_deploy.errors import ConfigError
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.system.suggest import shortened
from moh_deploy.validate.reference.differences import Float64Array


def price_arms(
    decided: Decided, prices: Prices, traffic: Traffic, places: Sequence[Place]
) -> CostReport:
    """Return what each arm costs, and whether it pays.

    Args:
        decided: Times and verdicts.
        prices: What is paid.
        traffic: What is asked for.
        places: Where each size of traffic lies among the measured ones.
    """
    terms = BillTerms.of(prices, traffic.per_month)
    timed = request_times(decided, traffic.requests, places)
    reference_ms = timed[0].ms.value
    arms = tuple(_arm_cost(times, reference_ms, terms) for times in timed)
    judged = [arm for arm in arms if arm.net is not None]
    best = max(judged, key=_rank, default=None)
    return CostReport(
        plan_digest=decided.plan_digest,
        reference=decided.reference,
        measured_on=decided.machine,
        machine=prices.machine.name,
        currency=prices.currency,
        billed=prices.machine.billed,
        requests_per_month=traffic.per_month,
        months=prices.months,
        engineering=terms.engineering.value,
        traffic=tuple(
            TrafficShare(dict(request.sizes), request.share, place.is_extrapolated)
            for request, place in zip(traffic.requests, places, strict=True)
        ),
        arms=arms,
        would_do=tuple(arm.name for arm in decided.would_do),
        break_even=tuple(
            SizeOutcome(even.arm, even.rival, even.outcome) for even in decided.break_even
        ),
        sensitivity_of=None if best is None else best.name,
        notes=tuple(_notes(decided, prices, traffic, places)),
    )


def _rank(arm: ArmCost) -> tuple[int, bool, float]:
    assert arm.net is not None
    place = ("does not pay", "cannot tell", "pays").index(arm.pays)
    return place, arm.verdict != "loss", arm.net.value


def _arm_cost(times: ArmTimes, reference_ms: float, terms: BillTerms) -> ArmCost:
    month = terms.month(times.ms)
    million = 1e6 / terms.requests.value
    saving = net = back = None
    pays: Pays = "reference"
    if times.saved_ms is not None:
        saving = terms.saving(reference_ms, times.saved_ms)
        net, back = terms.net(saving), paid_back(saving, terms.engineering)
        pays = _pays(times.arm, net)
    return ArmCost(
        name=times.arm.name,
        verdict=times.arm.verdict,
        dense=times.arm.dense,
        pays=pays,
        ms_per_request=times.ms,
        per_million=Estimate(*(end * million for end in (month.value, month.low, month.high))),
        per_month=month,
        saving_per_month=saving,
        paid_back=back,
        net=net,
        by_size=times.by_size,
    )


def _pays(arm: DecidedArm, net: Estimate) -> Pays:
    """Judge an arm: what the plan lets nobody serve does not pay, however cheap it is."""
    if arm.verdict == "loss" or net.high <= 0:
        return "does not pay"
    return "pays" if arm.verdict == "win" and net.low > 0 else "cannot tell"


def _notes(
    decided: Decided, prices: Prices, traffic: Traffic, places: Sequence[Place]
) -> Iterator[str]:
    yield (
        f"Times are of {decided.machine}: that {prices.machine.name} is as fast is taken for"
        " granted."
    )
    yield from traffic.notes
    asked = zip(traffic.requests, places, strict=True)
    between = sum(requests.share for requests, place in asked if place.is_extrapolated)
    if between:
        yield (
            f"Extrapolated: {100 * between:.3g} % of requests have sizes between measured ones, and"
            " are in every sum."
        )
    if prices.machine.runs_at_once > 1:
        yield (
            f"Extrapolated: {prices.machine.runs_at_once} runs at once, each as fast as the one"
            " that was measured alone."
        )


# The time that an arm takes for the sizes that traffic has, and how much less than the reference.
#
# Sizes between measured ones can be interpolated where that is asked for.


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
class ArmTimes:
    """Times of one arm for a request of this traffic.

    Attributes:
        arm: The arm.
        ms: Mean time of a request.
        saved_ms: How much less than the reference; None of the reference.
        by_size: One for each of the sizes of traffic.
    """

    arm: DecidedArm
    ms: Estimate
    saved_ms: Estimate | None
    by_size: tuple[SizeCost, ...]


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
    found = [_place(request.sizes, measured, between) for request in requests]
    missing = [request for request, place in zip(requests, found, strict=True) if place is None]
    if missing:
        share = sum(requests.share for requests in missing)
        listed = shortened(
            "{" + ", ".join(f"{name}: {size}" for name, size in requests.sizes.items()) + "}"
            for requests in missing
        )
        beyond = " or lie between two of them" if between else ""
        raise ConfigError(
            f"traffic has sizes that were not measured{beyond}, {100 * share:.3g} % of requests."
            f" Add to `sizes` of the plan: {listed}.",
            hint=""
            if between
            else "--extrapolate takes times between two measured sizes for sizes that lie between.",
        )
    return tuple(place for place in found if place is not None)


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
            mapping[name]: index
            for index, mapping in enumerate(measured)
            if {**mapping, name: size} == dict(sizes)
        }
        below = max((number for number in line if number < size), default=None)
        above = min((number for number in line if number > size), default=None)
        if below is not None and above is not None:
            share = (size - below) / (above - below)
            return Place((line[below], line[above]), (1 - share, share))
    return None


def request_times(
    decided: Decided, requests: Sequence[SizedRequests], places: Sequence[Place]
) -> tuple[ArmTimes, ...]:
    """Return the times of all arms, the reference first.

    Raises:
        ConfigError: Other work disturbed an arm at one of these sizes.
    """
    arms = decided.served
    # How much of each measured size is in each size of traffic, and in a request. [places, sizes]
    weights = np.zeros((len(places), len(decided.sizes)))
    for row, place in zip(weights, places, strict=True):
        row[list(place.indices)] = place.weights
    of_request = np.array([request.share for request in requests]) @ weights  # [sizes]
    _check_undisturbed(arms, [index for index, weight in enumerate(of_request) if weight])
    blocks = [
        np.array([arm.latency[index].block_means_ms for arm in arms]).T  # [blocks, arms]
        for index in range(len(decided.sizes))
    ]
    tail = tail_of(min(map(len, blocks)), decided.confidence)
    # Sizes were timed one after the other: each has draws of its own. [sizes, draws, arms]
    drawn = np.stack([redrawn_means(block, seed=seed) for seed, block in enumerate(blocks)])

    def estimate(draws: Float64Array) -> Estimate:
        low, high = np.quantile(draws[1:], [tail, 1 - tail])
        return Estimate(float(draws[0]), float(low), float(high))

    request = np.tensordot(of_request, drawn, 1)  # [draws, arms]
    by_size: list[list[SizeCost]] = [[] for _ in arms]
    for asked, row, place in zip(requests, weights, places, strict=True):
        ms = np.tensordot(row, drawn, 1)  # [draws, arms]
        for index, found in enumerate(by_size):
            gain = estimate(1 - ms[:, index] / ms[:, 0]) if index else None
            time, sizes = estimate(ms[:, index]), dict(asked.sizes)
            found.append(SizeCost(sizes, asked.share, time, gain, place.is_extrapolated))
    return tuple(
        ArmTimes(
            arm,
            estimate(request[:, index]),
            estimate(request[:, 0] - request[:, index]) if index else None,
            tuple(by_size[index]),
        )
        for index, arm in enumerate(arms)
    )


def _check_undisturbed(arms: Sequence[DecidedArm], used: Sequence[int]) -> None:
    for arm in arms:
        for latency in (arm.latency[index] for index in used):
            times = fmean(latency.block_means_ms) / latency.p50_ms
            if times > MOST_MEAN_OVER_MEDIAN:
                raise ConfigError(
                    f"the mean time of arm '{arm.name}' at {sizes_text(latency.sizes)} is"
                    f" {times:.3g} times its median, expected at most {MOST_MEAN_OVER_MEDIAN}:"
                    " other work disturbed it, and would be priced.",
                    hint="Run `moh-deploy compare` again while the machine does nothing else.",
                )
