"""What an answer depends on: the net saving with one input at a time at both of its ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from moh_deploy.decision.cost.bill import BillTerms, Work
from moh_deploy.decision.cost.estimate import Estimate, exactly
from moh_deploy.decision.cost.prices import Prices
from moh_deploy.report.numbers import amount


@dataclass(frozen=True)
class Sensitivity:
    """One input.

    Attributes:
        name: What it is, with its unit.
        low: Its low end.
        high: Its high end.
        at_low: The net saving there.
        at_high: The same at the high end.
        source: Where the ends come from: `measured`, `prices`, or `varied` by the share that prices
            say.
    """

    name: str
    low: float
    high: float
    at_low: float
    at_high: float
    source: str

    @property
    def width(self) -> float:
        """By how much the answer changes."""
        return abs(self.at_high - self.at_low)

    @property
    def words(self) -> str:
        """Both ends, in words."""
        return f"{amount(self.low)} to {amount(self.high)}, {self.source}"


def sensitivities(
    prices: Prices, terms: BillTerms, reference: Work, work: Work, saved_ms: Estimate
) -> tuple[Sensitivity, ...]:
    """Return all inputs that the net saving depends on, the widest first."""
    middle = replace(terms, utilization=exactly(terms.utilization.value))

    def net(at: BillTerms, saved: float) -> float:
        return at.net(at.saving(reference, work, exactly(saved))).value

    def of_term(
        name: str, ends: Estimate, at: Callable[[Estimate], BillTerms], source: str = "varied"
    ) -> Sensitivity:
        low, high = (net(at(exactly(end)), saved_ms.value) for end in ends.ends)
        return Sensitivity(name, ends.low, ends.high, low, high, source)

    def every() -> Iterator[Sensitivity]:
        low, high = (net(middle, end) for end in saved_ms.ends)
        name = "time saved in a request, ms"
        yield Sensitivity(name, saved_ms.low, saved_ms.high, low, high, "measured")
        busy, source = terms.utilization, "prices"
        if busy.low == busy.high:
            varied = _varied(busy, prices.vary)
            busy, source = replace(varied, high=min(1.0, varied.high)), "varied"
        yield of_term(
            "utilization", busy, lambda estimate: replace(middle, utilization=estimate), source
        )
        money, share = prices.currency, prices.vary
        yield of_term(
            "requests a month",
            _varied(terms.requests, share),
            lambda request: replace(middle, requests=request),
        )
        yield of_term(
            f"an hour of a machine, {money}",
            _varied(terms.per_hour, share),
            lambda estimate: replace(middle, per_hour=estimate),
        )
        yield of_term(
            f"a kWh, {money}",
            _varied(terms.energy, share),
            lambda estimate: replace(middle, energy=estimate),
        )
        yield of_term(
            f"engineering, {money}",
            _varied(terms.engineering, share),
            lambda estimate: replace(middle, engineering=estimate),
        )

    # Energy that is not counted, or engineering of nothing, changes nothing.
    found = [sensitivity for sensitivity in every() if sensitivity.width > 0]
    return tuple(sorted(found, key=lambda item: -item.width))


def _varied(estimate: Estimate, share: float) -> Estimate:
    return Estimate(estimate.value, estimate.value * (1 - share), estimate.value * (1 + share))
