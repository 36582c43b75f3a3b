"""Price every arm of a decision for the traffic of a team."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moh_deploy.decision.cost.bill import BillTerms, paid_back
from moh_deploy.decision.cost.decided import Decided, DecidedArm
from moh_deploy.decision.cost.estimate import Estimate
from moh_deploy.decision.cost.prices import Prices
from moh_deploy.decision.cost.report import (
    ArmCost,
    CostReport,
    Pays,
    SizeOutcome,
    TrafficShare,
)
from moh_deploy.decision.cost.run_times import ArmTimes, Place, request_times
from moh_deploy.decision.cost.traffic import Traffic


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
