"""Turn times of runs into money: what a month costs, what is saved, when it has paid for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from moh_deploy.decision.cost.estimate import Estimate, derived, exactly
from moh_deploy.decision.cost.prices import Prices

HOURS_OF_A_MONTH = 365.25 / 12 * 24
_MS_OF_AN_HOUR = 3.6e6
_MJ_OF_A_KWH = 3.6e9
_STEPS = 64
"""How finely a range of utilization is looked through where whole machines are paid."""


@dataclass(frozen=True)
class Work:
    """Time and energy of one request on average: what a bill is made of.

    Attributes:
        ms: Time of its run.
        energy_mj: Its energy; 0 where that is not paid.
    """

    ms: Estimate
    energy_mj: float = 0.0


@dataclass(frozen=True)
class BillTerms:
    """Terms of a month's bill besides the work of a request: traffic, prices, paying back.

    Attributes:
        requests: In a month.
        utilization: Share of the paid time that machines compute.
        per_hour: What a machine costs.
        energy: What a kWh costs.
        engineering: What it takes once.
        runs_at_once: On one machine.
        by_machine: Whole machines are paid.
        months: Within how many it has to be paid back.
    """

    requests: Estimate
    utilization: Estimate
    per_hour: Estimate
    energy: Estimate
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
            energy=exactly(0.0 if prices.energy is None else prices.energy.amount),
            engineering=prices.engineering_cost,
            runs_at_once=machine.runs_at_once,
            by_machine=machine.billed == "by-machine",
            months=prices.months,
        )

    def machines(self, work: Work) -> Estimate:
        """Return how many machines are busy all month, parts of one counted as such."""

        def number(ms: float, requests: float, utilization: float) -> float:
            hours = ms * requests / _MS_OF_AN_HOUR / utilization / self.runs_at_once
            return hours / HOURS_OF_A_MONTH

        return derived(number, work.ms, self.requests, self.utilization)

    def whole_machines(self, work: Work) -> Estimate:
        """Return how many machines have to be there."""
        return derived(_whole, self.machines(work))

    def month(self, work: Work) -> Estimate:
        """Return what a month costs."""

        def cost(machines: float, requests: float, per_hour: float, energy: float) -> float:
            paid = _whole(machines) if self.by_machine else machines
            kwh = work.energy_mj * requests / _MJ_OF_A_KWH
            return paid * HOURS_OF_A_MONTH * per_hour + kwh * energy

        return derived(cost, self.machines(work), self.requests, self.per_hour, self.energy)

    def saving(self, reference: Work, work: Work, saved_ms: Estimate) -> Estimate:
        """Return what a month costs less than with the reference.

        Args:
            reference: Its work.
            work: Of the arm.
            saved_ms: Time of the arm's run below that of the reference, whose interval is of both
                together.
        """

        def less(saved: float, utilization: float) -> float:
            fixed = replace(self, utilization=exactly(utilization))
            before = replace(reference, ms=exactly(reference.ms.value))
            after = replace(work, ms=exactly(max(0.0, reference.ms.value - saved)))
            return fixed.month(before).value - fixed.month(after).value

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
