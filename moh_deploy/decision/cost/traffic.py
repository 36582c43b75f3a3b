"""The traffic of a service: how often which sizes are asked for, from counts or a log.

A CSV file with a column for each dimension, and either `count` or `timestamp`.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import read_text
from moh_deploy.system.suggest import did_you_mean, shortened

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
    """Read traffic.

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
            sizes = tuple(_whole(row[name], name, place, least=1) for name in dims)
            if is_log:
                stamps.append(_seconds(row["timestamp"], place))
            counted[sizes] += 1 if is_log else _whole(row["count"], "count", place, least=0)
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


def _whole(text: str, name: str, place: str, *, least: int) -> int:
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
