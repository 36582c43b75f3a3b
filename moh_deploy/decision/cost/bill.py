"""Turn times of runs into money: what a month costs, what is saved, when it has paid for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from moh_deploy.decision.cost.estimate import Estimate, derived, exactly
from moh_deploy.decision.cost.prices import Prices

HOURS_OF_A_MONTH = 365.25 / 12 * 24
_MS_OF_AN_HOUR = 3.6e6
_STEPS = 64
"""How finely a range of utilization is looked through where whole machines are paid."""


@dataclass(frozen=True)
class BillTerms:
    """Terms of a month's bill besides the time of a request: traffic, prices, paying back.

    Attributes:
        requests: In a month.
        utilization: Share of the paid time that machines compute.
        per_hour: What a machine costs.
        engineering: What it takes once.
        runs_at_once: On one machine.
        by_machine: Whole machines are paid.
        months: Within how many it has to be paid back.
    """

    requests: Estimate
    utilization: Estimate
    per_hour: Estimate
    engineering: Estimate
    runs_at_once: int
    by_machine: bool
    months: float

    @classmethod
    def of(cls, prices: Prices, requests: float) -> BillTerms:
        """Return what prices say, for so many requests a month."""
        machine = prices.machine
        return cls(
            requests=exactly(requests),
            utilization=machine.utilization.estimate,
            per_hour=exactly(machine.per_hour.amount),
            engineering=prices.engineering_cost,
            runs_at_once=machine.runs_at_once,
            by_machine=machine.billed == "by-machine",
            months=prices.months,
        )

    def machines(self, ms: Estimate) -> Estimate:
        """Return how many machines are busy all month, parts of one counted as such."""

        def number(ms: float, requests: float, utilization: float) -> float:
            hours = ms * requests / _MS_OF_AN_HOUR / utilization / self.runs_at_once
            return hours / HOURS_OF_A_MONTH

        return derived(number, ms, self.requests, self.utilization)

    def month(self, ms: Estimate) -> Estimate:
        """Return what a month costs.

        Args:
            ms: Time of the run of one request on average.
        """

        def cost(machines: float, per_hour: float) -> float:
            paid = _whole(machines) if self.by_machine else machines
            return paid * HOURS_OF_A_MONTH * per_hour

        return derived(cost, self.machines(ms), self.per_hour)

    def saving(self, reference_ms: float, saved_ms: Estimate) -> Estimate:
        """Return what a month costs less than with the reference.

        Args:
            reference_ms: Time of its run.
            saved_ms: Time of the arm's run below that of the reference, whose interval is of both
                together.
        """

        def less(saved: float, utilization: float) -> float:
            fixed = replace(self, utilization=exactly(utilization))
            after = exactly(max(0.0, reference_ms - saved))
            return fixed.month(exactly(reference_ms)).value - fixed.month(after).value

        # Whole machines are saved in steps, more in between than at either end.
        steps = _STEPS if self.by_machine else 1
        low, high = self.utilization.ends
        shares = [low + (high - low) * step / steps for step in range(steps + 1)]
        value = less(saved_ms.value, self.utilization.value)
        found = [value, *(less(saved, share) for saved in saved_ms.ends for share in shares)]
        return Estimate(value, min(found), max(found))

    def net(self, saving: Estimate) -> Estimate:
        """Return what is left in the time within which it has to be paid back."""
        return derived(lambda month, once: month * self.months - once, saving, self.engineering)


def _whole(machines: float) -> float:
    # 3 machines computed in floats may be 3 and a bit: nobody rents a fourth for that.
    return math.ceil(machines - 1e-9)


@dataclass(frozen=True)
class PaidBack:
    """After how many months an arm has paid for the engineering; None: never.

    Attributes:
        months: As measured.
        low: At best.
        high: At worst.
    """

    months: float | None
    low: float | None
    high: float | None


def paid_back(saving: Estimate, engineering: Estimate) -> PaidBack:
    """Return when savings add up to what it takes once."""

    def months(once: float, month: float) -> float | None:
        return once / month if month > 0 else None

    return PaidBack(
        months(engineering.value, saving.value),
        months(engineering.low, saving.high),
        months(engineering.high, saving.low),
    )
