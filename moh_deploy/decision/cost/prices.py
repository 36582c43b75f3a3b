"""The prices of a team, and what they make of times of runs: a month's bill, and what is saved.

docs/cost.md describes the YAML file, in which every price has its unit.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import read_text
from moh_deploy.system.suggest import did_you_mean, shortened
from moh_deploy.system.units import NUMBER

_PRICE = re.compile(rf"({NUMBER})\s*([A-Z]{{3}})\s*(?:/\s*([A-Za-z]+))?", re.ASCII)
_UNITS = {"hour": ("h", "hour"), "day": ("day", "d")}
HOURS_OF_A_MONTH = 365.25 / 12 * 24
_MS_OF_AN_HOUR = 3.6e6
_STEPS = 64
"""How finely a range of utilization is looked through where whole machines are paid."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float  # what it is with every input as it was given or measured
    low: float  # the least that it is within the intervals of its inputs
    high: float  # and the most

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high


def derived(function: Callable[..., float], *inputs: Estimate) -> Estimate:
    """Return what a function makes of its inputs: its interval holds all combinations of ends.

    Args:
        function: It rises or falls with each input, so that ends are at ends.
        inputs: Its arguments.
    """
    corners = [function(*ends) for ends in product(*(estimate.ends for estimate in inputs))]
    value = function(*(estimate.value for estimate in inputs))
    return Estimate(value, min(corners), max(corners))


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Price(_Section):
    """An amount of money for one unit of something; the currency is three capitals."""

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
    """`machine:` the price of the serving machine."""

    name: Annotated[str, Field(min_length=1)]  # what it is called where it is bought
    per_hour: Annotated[Price, _price_per("hour")]  # what an hour costs, busy or not
    # Share of the paid time that it computes: traffic has nights, fleets a reserve.
    utilization: Annotated[Utilization, BeforeValidator(_read_range)]
    # How many runs it makes at the same time, each in the time that was measured.
    runs_at_once: Annotated[int, Field(ge=1)] = 1
    # `by-use`: hours that other work would fill are not counted. `by-machine`: whole machines, all
    # month long.
    billed: Literal["by-use", "by-machine"] = "by-use"


class EngineeringSection(_Section):
    """`engineering:` the days until another alternative serves, and the price of a day."""

    days: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    per_day: Annotated[Price, _price_per("day")]


class Prices(_Section):
    """The content of a price file."""

    machine: MachineSection  # what serves
    engineering: EngineeringSection | None = None  # what it takes once
    # Within how many months engineering has to be paid back.
    months: Annotated[float, Field(gt=0, le=120)] = 12.0

    @model_validator(mode="after")
    def _one_currency(self) -> Prices:
        found = {"machine.per_hour": self.machine.per_hour.currency}
        if self.engineering is not None:
            found["engineering.per_day"] = self.engineering.per_day.currency
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{place} in {currency}" for place, currency in found.items())
            raise ValueError(f"prices are in several currencies, expected one: {listed}.")
        return self

    @property
    def engineering_cost(self) -> float:
        """Return the one-time cost of engineering."""
        once = self.engineering
        return 0.0 if once is None else once.days * once.per_day.amount


def read_prices(path: Path) -> Prices:
    """Read a file of prices.

    Raises:
        ConfigError: The file is unreadable, or not of the schema; all that is wrong is said.
    """
    document = read_mapping(path, Prices, hint="`moh-deploy help cost` shows one to begin with.")
    return checked(document, Prices, str(path))


@dataclass(frozen=True)
class Bill:
    """The monthly cost of a number of requests, from run times and prices."""

    prices: Prices
    requests: float

    def month(self, ms: Estimate) -> Estimate:
        """Return what a month costs.

        Args:
            ms: Time of the run of one request on average.
        """
        return derived(self._cost, ms, self.prices.machine.utilization.estimate)

    def saving(self, reference_ms: float, saved_ms: Estimate) -> Estimate:
        """Return what a month costs less than with the reference.

        Args:
            reference_ms: Time of its run.
            saved_ms: Time of the alternative's run below that of the reference, whose interval is
                of both together.
        """
        machine = self.prices.machine

        def less(saved: float, utilization: float) -> float:
            after = self._cost(max(0.0, reference_ms - saved), utilization)
            return self._cost(reference_ms, utilization) - after

        # Whole machines are saved in steps, more in between than at either end.
        steps = _STEPS if machine.billed == "by-machine" else 1
        low, high = machine.utilization.estimate.ends
        shares = [low + (high - low) * step / steps for step in range(steps + 1)]
        value = less(saved_ms.value, machine.utilization.estimate.value)
        found = [value, *(less(saved, share) for saved in saved_ms.ends for share in shares)]
        return Estimate(value, min(found), max(found))

    def _cost(self, ms: float, utilization: float) -> float:
        machine = self.prices.machine
        hours = ms * self.requests / _MS_OF_AN_HOUR / utilization / machine.runs_at_once
        machines = hours / HOURS_OF_A_MONTH
        if machine.billed == "by-machine":
            # 3 machines computed in floats may be 3 and a bit: that needs no fourth.
            machines = math.ceil(machines - 1e-9)
        return machines * HOURS_OF_A_MONTH * machine.per_hour.amount


# The traffic of a service: how often which sizes are asked for, from counts or a log.
#
# A CSV file with a column for each dimension, and either `count` or `timestamp`.

DAYS_OF_A_MONTH = 365.25 / 12
_MOST_BYTES = 256 * 2**20
_SHORT_LOG_DAYS = 7.0
_MOST_SECONDS = 1e11  # in the year 5138; milliseconds since 1970 are more


@dataclass(frozen=True)
class SizedRequests:
    """Requests of one size."""

    sizes: dict[str, int]  # of the dynamic dimensions
    share: float  # of all requests
    extrapolated: bool = False  # its times are taken between those of two measured sizes


@dataclass(frozen=True)
class Traffic:
    """Requests of a team by their sizes, as counts or of a log: what costs are weighed by."""

    requests: tuple[SizedRequests, ...]  # by sizes; the most frequent first. Each is one run.
    per_month: float  # how many in a month
    notes: tuple[str, ...]  # what a reader has to know of where that comes from


def read_traffic(path: Path, dims: Sequence[str], *, days: float | None = None) -> Traffic:
    """Read a file of traffic.

    Args:
        path: CSV with a header.
        dims: The dimensions that times were measured at.
        days: How many days the file is of; without, a month for counts, and what its timestamps
            span for a log.

    Raises:
        ConfigError: The file is unreadable, or a column or value does not fit; with its line.
    """
    if days is not None and not 0 < days < float("inf"):
        raise ConfigError(f"days is {days:g}, expected more than 0.")
    try:
        text = read_text(path, most_bytes=_MOST_BYTES, error=ConfigError).removeprefix("\ufeff")
    except FileNotFoundError:
        raise ConfigError(f"traffic is {path}, which does not exist.") from None
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    # Sizes in the order of `dims`, to their requests.
    counted: Counter[tuple[int, ...]] = Counter()
    stamps: list[float] = []
    try:
        is_log = _check_columns(rows.fieldnames or (), dims, path)
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{place}: has another number of values than the header.")
            sizes = tuple(_whole_number(row[name], name, place, least=1) for name in dims)
            if is_log:
                stamps.append(_seconds(row["timestamp"], place))
            counted[sizes] += 1 if is_log else _whole_number(row["count"], "count", place, least=0)
    except csv.Error as problem:
        raise ConfigError(f"{path}, line {rows.line_num}: is no CSV: {problem}.") from None
    total = sum(counted.values())
    if not total:
        raise ConfigError(f"{path} has no requests.")
    notes: tuple[str, ...] = ()
    if is_log and days is None:
        # Between n requests there are n - 1 gaps: a log ends with its last one.
        days = (max(stamps) - min(stamps)) / 86_400 * len(stamps) / max(1, len(stamps) - 1)
        if not days:
            raise ConfigError(
                f"{path}: its timestamps span no time, so requests of a month are not known.",
                hint="Say how many days it is of by --days.",
            )
    if is_log and days is not None and days < _SHORT_LOG_DAYS:
        notes = (f"A month is extrapolated from {days:.3g} days of traffic.",)
    return Traffic(
        tuple(
            SizedRequests(dict(zip(dims, sizes, strict=True)), count / total)
            for sizes, count in counted.most_common()
            if count
        ),
        total * DAYS_OF_A_MONTH / (days or DAYS_OF_A_MONTH),
        notes,
    )


def _check_columns(columns: Sequence[str], dims: Sequence[str], path: Path) -> bool:
    """Return whether the file is a log."""
    wanted = f"{', '.join([*dims, 'count'])}, or timestamp in place of count"
    for column in columns:
        if column not in (*dims, "count", "timestamp"):
            hint = did_you_mean(column, [*dims, "count", "timestamp"])
            raise ConfigError(
                f"{path}: unknown column '{column}', expected {wanted}. {hint}".strip()
            )
    missing = [name for name in dims if name not in columns]
    if missing:
        raise ConfigError(f"{path}: no column {shortened(missing)}, expected {wanted}.")
    if ("count" in columns) == ("timestamp" in columns) or len(set(columns)) < len(columns):
        raise ConfigError(f"{path}: has columns {', '.join(columns) or 'none'}, expected {wanted}.")
    return "timestamp" in columns


def _whole_number(text: str, name: str, place: str, *, least: int) -> int:
    text = text.strip()
    number = int(text) if text.isdecimal() and len(text) <= 15 else -1
    if number < least:
        raise ConfigError(
            f"{place}: {name} is '{text:.40}', expected a whole number from {least} on."
        )
    return number


def _seconds(text: str, place: str) -> float:
    """Read seconds since 1970, or ISO 8601; without a zone it is UTC."""
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if abs(seconds) < _MOST_SECONDS:  # NaN is not, either
            return seconds
        raise ConfigError(
            f"{place}: timestamp is '{text:.40}', expected seconds since 1970.",
            hint="Divide milliseconds by 1000." if math.isfinite(seconds) else None,
        )
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{place}: timestamp is '{text:.40}', expected seconds since 1970, or such as"
            " 2026-03-01T12:00:00Z."
        ) from None
