"""The prices of a team: a YAML file in which every price has its unit.

docs/cost.md describes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.decision.cost.estimate import Estimate, exactly
from moh_deploy.system.units import NUMBER

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
