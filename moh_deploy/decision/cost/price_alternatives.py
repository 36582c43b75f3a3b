"""Price every alternative of a decision for traffic: mean times of a request, then money.

Sizes of traffic between measured ones can be interpolated where that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moh_deploy.config.checked_yaml import dotted
from moh_deploy.decision import latency_promise as rounds
from moh_deploy.decision.cost import report
from moh_deploy.decision.cost.prices import Bill, Estimate, Prices, SizedRequests, Traffic
from moh_deploy.decision.cost.report import SizeOutcome
from moh_deploy.decision.latency_promise import LEAST_BLOCKS
from moh_deploy.errors import ConfigError
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.suggest import shortened
from moh_deploy.validate.reference.differences import Float64Array

# The JSON of a decision, as far as costs rest on it: times of the alternatives, and what was
# decided.

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # Reports say much more, which costs do not need.
    model_config = ConfigDict(extra="ignore", frozen=True)


class DecidedLatency(_Part):
    """Times of one alternative at one set of sizes; see `decision.report.LatencyFigure`."""

    sizes: dict[str, int]
    p50_ms: _Positive
    block_means_ms: tuple[_Positive, ...] = ()


class DecidedAlternative(_Part):
    """An alternative; see `moh_deploy.decision.report.AlternativeReport`."""

    name: str
    verdict: Literal["win", "loss", "cannot tell", "reference"]
    dense: bool
    is_bound: bool
    latency: tuple[DecidedLatency, ...]


class DecidedWouldDo(_Part):
    """An alternative without routers that does as well."""

    name: str


class Decided(_Part):
    """The report; see `moh_deploy.decision.report.DecisionReport`."""

    schema_version: Literal[1]
    sha256: str | None = None  # older reports lack it
    plan_digest: str
    reference: str
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    machine: str
    arms: Annotated[tuple[DecidedAlternative, ...], Field(min_length=1)]
    would_do: tuple[DecidedWouldDo, ...]
    break_even: tuple[SizeOutcome, ...] = ()

    @property
    def served(self) -> tuple[DecidedAlternative, ...]:
        """The alternatives that could be served, the reference first."""
        alternatives = [alternative for alternative in self.arms if not alternative.is_bound]
        return tuple(
            sorted(alternatives, key=lambda alternative: alternative.name != self.reference)
        )

    @property
    def sizes(self) -> tuple[dict[str, int], ...]:
        """At which times were measured."""
        return tuple(latency.sizes for latency in self.served[0].latency)


def read_decided(path: Path) -> Decided:
    """Read what `moh-deploy compare --json` printed.

    Raises:
        ConfigError: It is no such report, was edited, or times in it do not bear costs.
    """
    again = "It is what `moh-deploy compare --plan plan.yaml --json` prints."
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"from is {path}, which does not exist.", hint=again) from None
    try:
        found = Decided.model_validate(content)
    except ValidationError as error:
        item = error.errors()[0]
        place = dotted(item["loc"]) or "the whole"
        raise ConfigError(
            f"{path} is no JSON report of `moh-deploy compare`: {place}: {item['msg']}.", hint=again
        ) from None
    assert isinstance(content, dict)  # or it would not have been valid
    plain = {key: value for key, value in content.items() if key != "sha256"}
    if found.sha256 is not None and found.sha256 != sha256_of_json(plain):
        raise ConfigError(
            f"{path} was edited since `moh-deploy compare` printed it: its sha256 is of another"
            " decision.",
            hint="Price the decision as it was printed, or run `moh-deploy compare` again.",
        )
    _check_decision(found, path)
    return found


def _check_decision(found: Decided, path: Path) -> None:
    if found.reference not in [decided_alternative.name for decided_alternative in found.served]:
        raise ConfigError(
            f"{path}: reference is '{found.reference}', which is no alternative of it."
        )
    if not found.sizes:
        raise ConfigError(
            f"{path}: no time was measured, so nothing can be priced.",
            hint="Give the plan `latency`, and `sizes` that traffic has.",
        )
    for alternative in found.served:
        # Draws of blocks take all alternatives at once, so all have the same sizes and as many
        # blocks.
        if tuple(latency.sizes for latency in alternative.latency) != found.sizes:
            raise ConfigError(f"{path}: alternative '{alternative.name}' was timed at other sizes.")
        counts = [len(latency.block_means_ms) for latency in alternative.latency]
        if counts != [len(latency.block_means_ms) for latency in found.served[0].latency]:
            raise ConfigError(
                f"{path}: alternative '{alternative.name}' has another number of blocks of rounds."
            )
        if min(counts) < LEAST_BLOCKS:
            raise ConfigError(
                f"{path}: alternative '{alternative.name}' has {min(counts)} blocks of rounds,"
                f" expected at least {LEAST_BLOCKS}.",
                hint="Run `moh-deploy compare` again, with more `seconds` where rounds were few:"
                " earlier versions wrote no blocks.",
            )


Place: TypeAlias = Mapping[int, float]
"""Where a size of traffic lies among the measured ones: the index of the one that stands for it, or
of its two neighbours, to how much that counts. Of two neighbours it was not measured itself."""


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
        share = sum(request.share for request in missing)
        listed = shortened(
            "{" + ", ".join(f"{name}: {size}" for name, size in request.sizes.items()) + "}"
            for request in missing
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
        return {list(measured).index(sizes): 1.0}
    for name, size in sizes.items() if between else ():
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
            return {line[below]: 1 - share, line[above]: share}
    return None


@dataclass(frozen=True)
class AlternativeTimes:
    """Times of one alternative for a request of this traffic."""

    alternative: DecidedAlternative
    ms: Estimate  # mean time of a request
    saved_ms: Estimate | None  # how much less than the reference; None of the reference
    by_size: tuple[report.SizeCost, ...]  # one for each of the sizes of traffic


def request_times(
    decided: Decided, requests: Sequence[SizedRequests], places: Sequence[Place]
) -> tuple[AlternativeTimes, ...]:
    """Return the times of all alternatives, the reference first.

    Raises:
        ConfigError: Other work disturbed an alternative at one of these sizes.
    """
    alternatives = decided.served
    # How much of each measured size is in each size of traffic, and in a request. [places, sizes]
    weights = np.zeros((len(places), len(decided.sizes)))
    for row, place in zip(weights, places, strict=True):
        row[list(place)] = list(place.values())
    of_request = np.array([request.share for request in requests]) @ weights  # [sizes]
    _check_undisturbed(alternatives, np.flatnonzero(of_request).tolist())
    blocks = [
        np.array(
            [alternative.latency[index].block_means_ms for alternative in alternatives]
        ).T  # [blocks, alternatives]
        for index in range(len(decided.sizes))
    ]
    tail = rounds.tail_of(min(map(len, blocks)), decided.confidence)
    # Sizes were timed one after the other: each has draws of its own. [sizes, draws, alternatives]
    drawn = np.stack([rounds.redrawn_means(block, seed=seed) for seed, block in enumerate(blocks)])

    def estimate(draws: Float64Array) -> Estimate:
        low, high = np.quantile(draws[1:], [tail, 1 - tail])
        return Estimate(float(draws[0]), float(low), float(high))

    request = np.tensordot(of_request, drawn, 1)  # [draws, alternatives]
    sized = [np.tensordot(row, drawn, 1) for row in weights]  # of each place, [draws, alternatives]
    return tuple(
        AlternativeTimes(
            alternative,
            estimate(request[:, index]),
            # The reference saves nothing of its own time.
            estimate(request[:, 0] - request[:, index]) if index else None,
            tuple(
                report.SizeCost(
                    asked.sizes,
                    asked.share,
                    estimate(ms[:, index]),
                    estimate(1 - ms[:, index] / ms[:, 0]) if index else None,
                    len(place) > 1,
                )
                for asked, ms, place in zip(requests, sized, places, strict=True)
            ),
        )
        for index, alternative in enumerate(alternatives)
    )


def _check_undisturbed(alternatives: Sequence[DecidedAlternative], used: Sequence[int]) -> None:
    for alternative in alternatives:
        for latency in (alternative.latency[index] for index in used):
            times = fmean(latency.block_means_ms) / latency.p50_ms
            if times > rounds.MOST_MEAN_OVER_MEDIAN:
                raise ConfigError(
                    f"the mean time of alternative '{alternative.name}' at"
                    f" {sizes_text(latency.sizes)} is {times:.3g} times its median, expected at"
                    f" most {rounds.MOST_MEAN_OVER_MEDIAN}: other work disturbed it, and would be"
                    " priced.",
                    hint="Run `moh-deploy compare` again while the machine does nothing else.",
                )


def price_alternatives(
    decided: Decided, prices: Prices, traffic: Traffic, places: Sequence[Place]
) -> report.CostReport:
    """Return what each alternative costs, and whether it pays.

    Args:
        decided: Times and verdicts.
        prices: What is paid.
        traffic: What is asked for.
        places: Where each size of traffic lies among the measured ones.
    """
    # The reference is first: all else is compared with it.
    bill = Bill(prices, traffic.per_month)
    timed = request_times(decided, traffic.requests, places)
    alternatives = tuple(_alternative_cost(times, timed[0].ms.value, bill) for times in timed)
    order = ("does not pay", "cannot tell", "pays")
    # Those that pay before those that may, and an alternative that lost behind the others.
    ranks = {
        alternative.name: (
            order.index(alternative.pays),
            alternative.verdict != "loss",
            alternative.net.value,
        )
        for alternative in alternatives
        if alternative.net is not None
    }
    return report.CostReport(
        plan_digest=decided.plan_digest,
        reference=decided.reference,
        measured_on=decided.machine,
        machine=prices.machine.name,
        currency=prices.machine.per_hour.currency,
        billed=prices.machine.billed,
        requests_per_month=traffic.per_month,
        months=prices.months,
        engineering=prices.engineering_cost,
        traffic=tuple(
            replace(request, extrapolated=len(place) > 1)
            for request, place in zip(traffic.requests, places, strict=True)
        ),
        arms=alternatives,
        would_do=tuple(alternative.name for alternative in decided.would_do),
        break_even=decided.break_even,
        sensitivity_of=max(ranks, key=ranks.__getitem__, default=None),
        notes=tuple(_notes(decided, prices, traffic, places)),
    )


def _alternative_cost(
    times: AlternativeTimes, reference_ms: float, bill: Bill
) -> report.AlternativeCost:
    # What a month costs rises with its requests, but in steps where whole machines are paid.
    month, prices = bill.month(times.ms), bill.prices
    million = 1e6 / bill.requests
    saving = net = back = None
    pays: report.Pays = "reference"
    if times.saved_ms is not None:
        once = prices.engineering_cost
        saving = bill.saving(reference_ms, times.saved_ms)
        net = Estimate(*(x * prices.months - once for x in (saving.value, saving.low, saving.high)))
        # At best the most is saved.
        back = report.PaidBack(
            *(once / x if x > 0 else None for x in (saving.value, saving.high, saving.low))
        )
        pays = "cannot tell"
        # An alternative that the plan excludes does not pay, however cheap it is.
        if times.alternative.verdict == "loss" or net.high <= 0:
            pays = "does not pay"
        elif times.alternative.verdict == "win" and net.low > 0:
            pays = "pays"
    return report.AlternativeCost(
        name=times.alternative.name,
        verdict=times.alternative.verdict,
        dense=times.alternative.dense,
        pays=pays,
        ms_per_request=times.ms,
        per_million=Estimate(*(end * million for end in (month.value, month.low, month.high))),
        per_month=month,
        saving_per_month=saving,
        paid_back=back,
        net=net,
        by_size=times.by_size,
    )


def _notes(
    decided: Decided, prices: Prices, traffic: Traffic, places: Sequence[Place]
) -> Iterator[str]:
    yield (
        f"Times are of {decided.machine}: that {prices.machine.name} is as fast is taken for"
        " granted."
    )
    yield from traffic.notes
    asked = zip(traffic.requests, places, strict=True)
    between = sum(requests.share for requests, place in asked if len(place) > 1)
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
