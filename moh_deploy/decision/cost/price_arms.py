"""Price every arm of a decision for the traffic of a team."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from moh_deploy.decision.cost.bill import BillTerms, Work, paid_back
from moh_deploy.decision.cost.decided import Decided, DecidedArm
from moh_deploy.decision.cost.estimate import Estimate, exactly
from moh_deploy.decision.cost.prices import Prices
from moh_deploy.decision.cost.report import (
    ArmCost,
    CostReport,
    Fleet,
    Pays,
    SizeOutcome,
    TrafficShare,
)
from moh_deploy.decision.cost.run_times import ArmTimes, Place, request_times
from moh_deploy.decision.cost.sensitivity import sensitivities
from moh_deploy.decision.cost.traffic import Traffic

_FLEETS = (1, 10, 100)


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
    # Energy of some arms only would make those dearer that were measured.
    has_energy = prices.energy is not None and all(times.energy_mj is not None for times in timed)
    works = {
        times.arm.name: Work(times.ms, times.energy_mj if has_energy and times.energy_mj else 0.0)
        for times in timed
    }
    reference = works[decided.reference]
    arms = tuple(_arm_cost(times, works[times.arm.name], reference, terms) for times in timed)
    judged = [arm for arm in arms if arm.net is not None]
    best = max(judged, key=_rank, default=None)
    chosen = next(
        (times for times in timed if best is not None and times.arm.name == best.name), None
    )
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
        sensitivity=()
        if chosen is None or chosen.saved_ms is None
        else sensitivities(prices, terms, reference, works[chosen.arm.name], chosen.saved_ms),
        fleets=tuple(
            _fleets(works, terms, extrapolates=any(place.is_extrapolated for place in places))
        ),
        notes=tuple(_notes(decided, prices, traffic, places, has_energy)),
    )


def _rank(arm: ArmCost) -> tuple[int, bool, float]:
    assert arm.net is not None
    place = ("does not pay", "cannot tell", "pays").index(arm.pays)
    return place, arm.verdict != "loss", arm.net.value


def _arm_cost(times: ArmTimes, work: Work, reference: Work, terms: BillTerms) -> ArmCost:
    month = terms.month(work)
    million = 1e6 / terms.requests.value
    saving = net = back = None
    pays: Pays = "reference"
    if times.saved_ms is not None:
        saving = terms.saving(reference, work, times.saved_ms)
        net, back = terms.net(saving), paid_back(saving, terms.engineering)
        pays = _pays(times.arm, net)
    return ArmCost(
        name=times.arm.name,
        verdict=times.arm.verdict,
        dense=times.arm.dense,
        pays=pays,
        ms_per_request=work.ms,
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


def _fleets(works: Mapping[str, Work], terms: BillTerms, *, extrapolates: bool) -> Iterator[Fleet]:
    """Yield whole machines for this traffic and for more of it.

    One machine was measured that did one run at a time: all that is more is a model on paper.
    """
    for times in _FLEETS:
        grown = replace(terms, requests=exactly(times * terms.requests.value), by_machine=True)
        for name, work in works.items():
            month, machines = grown.month(work), grown.whole_machines(work)
            beyond = extrapolates or times > 1 or machines.high > 1 or terms.runs_at_once > 1
            yield Fleet(times, name, machines, month, beyond)


def _notes(
    decided: Decided, prices: Prices, traffic: Traffic, places: Sequence[Place], has_energy: bool
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
    if prices.energy is not None and not has_energy:
        yield "Energy is not in any figure: it was not measured for every arm."
    if prices.machine.runs_at_once > 1:
        yield (
            f"Extrapolated: {prices.machine.runs_at_once} runs at once, each as fast as the one"
            " that was measured alone."
        )
