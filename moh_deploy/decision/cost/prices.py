"""The prices of a team: a YAML file in which every price has its unit.

docs/cost.md describes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.system.units import NUMBER

# A figure with the interval that its inputs leave, and figures derived from others.


@dataclass(frozen=True)
class Estimate:
    """A figure.

    Attributes:
        value: What it is with every input as it was given or measured.
        low: The least that it is within the intervals of its inputs.
        high: And the most.
    """

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high


def exactly(value: float) -> Estimate:
    """Return a figure that is known."""
    return Estimate(value, value, value)


def derived(function: Callable[..., float], *inputs: Estimate) -> Estimate:
    """Return what a function makes of its inputs: its interval holds all combinations of ends.

    Args:
        function: It rises or falls with each input, so that ends are at ends.
        inputs: Its arguments.
    """
    corners = [function(*ends) for ends in product(*(estimate.ends for estimate in inputs))]
    value = function(*(estimate.value for estimate in inputs))
    return Estimate(value, min(corners), max(corners))


_PRICE = re.compile(rf"({NUMBER})\s*([A-Z]{{3}})\s*(?:/\s*([A-Za-z]+))?", re.ASCII)
_UNITS = {"hour": ("h", "hour"), "day": ("day", "d")}


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Price(_Section):
    """An amount of money for one unit of something.

    Attributes:
        amount: How much.
        currency: Three capitals.
    """

    amount: float
    currency: str


def _price_per(unit: str) -> BeforeValidator:
    """Return what reads `3.06 USD`, or `3.06 USD/h` where that unit is meant."""

    def read(text: object) -> Price:
        example = f"'3.06 USD/{_UNITS[unit][0]}'"
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            raise _refused(f"a price without a unit, expected an amount such as {example}")
        match = _PRICE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise _refused(f"expected an amount and a currency of three capitals: {example}")
        amount, currency, per = match.groups()
        if per is not None and per not in _UNITS[unit]:
            raise _refused(f"a price per {per}, expected one per {unit}: {example}")
        return Price(amount=float(amount), currency=currency)

    return BeforeValidator(read)


def _refused(why: str) -> PydanticCustomError:
    # Not a ValueError: what reads one value does not know where it stands, and pydantic does.
    return PydanticCustomError("refused", "{why}", {"why": why})


def _read_range(value: object) -> object:
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not all(isinstance(item, (int, float)) for item in value):
            raise _refused("expected a number, or the two ends of a range")
        return {"low": value[0], "high": value[1]}
    return {"low": value, "high": value}


class Utilization(_Section):
    """The share of the paid time in which machines compute, or a range of it."""

    low: Annotated[float, Field(gt=0, le=1, strict=False)]
    high: Annotated[float, Field(gt=0, le=1, strict=False)]

    @property
    def estimate(self) -> Estimate:
        """The middle, and both ends."""
        return Estimate((self.low + self.high) / 2, *sorted((self.low, self.high)))


class MachineSection(_Section):
    """`machine:` what serves.

    Attributes:
        name: What it is called where it is bought.
        per_hour: What an hour costs, busy or not.
        utilization: Share of the paid time that it computes: traffic has nights, fleets a reserve.
        runs_at_once: How many runs it makes at the same time, each in the time that was measured.
        billed: `by-use`: hours that other work would fill are not counted. `by-machine`: whole
            machines, all month long.
    """

    name: Annotated[str, Field(min_length=1)]
    per_hour: Annotated[Price, _price_per("hour")]
    utilization: Annotated[Utilization, BeforeValidator(_read_range)]
    runs_at_once: Annotated[int, Field(ge=1)] = 1
    billed: Literal["by-use", "by-machine"] = "by-use"


class EngineeringSection(_Section):
    """`engineering:` what it takes once, until another arm serves.

    Attributes:
        days: How many.
        per_day: What one costs.
    """

    days: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    per_day: Annotated[Price, _price_per("day")]


class Prices(_Section):
    """The file.

    Attributes:
        machine: What serves.
        engineering: What it takes once.
        months: Within how many months engineering has to be paid back.
    """

    machine: MachineSection
    engineering: EngineeringSection | None = None
    months: Annotated[float, Field(gt=0, le=120)] = 12.0

    @model_validator(mode="after")
    def _one_currency(self) -> Prices:
        found = dict(self._priced())
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{place} in {currency}" for place, currency in found.items())
            raise ValueError(f"prices are in several currencies, expected one: {listed}.")
        return self

    def _priced(self) -> Iterator[tuple[str, str]]:
        yield "machine.per_hour", self.machine.per_hour.currency
        if self.engineering is not None:
            yield "engineering.per_day", self.engineering.per_day.currency

    @property
    def currency(self) -> str:
        """Of all of them."""
        return self.machine.per_hour.currency

    @property
    def engineering_cost(self) -> Estimate:
        """What it takes once."""
        if self.engineering is None:
            return exactly(0.0)
        return exactly(self.engineering.days * self.engineering.per_day.amount)


def read_prices(path: Path) -> Prices:
    """Read prices.

    Raises:
        ConfigError: The file is unreadable, or not of the schema; all that is wrong is said.
    """
    document = read_mapping(path, Prices, hint="docs/cost.md has one to begin with.")
    return checked(document, Prices, str(path))


# Turn times of runs into money: what a month costs, what is saved, when it has paid for itself.

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
