"""Read quantities with a unit that users write: `5s`, `2 GiB`, `80 %`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from moh_deploy.errors import ConfigError
from moh_deploy.system.suggest import did_you_mean

# Each table gives what a unit is in the metric's own one, which is 1. Units are case-sensitive: MB
# is 10^6 bytes, MiB 2^20.
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
BYTES = {"MB": 1e6, "GB": 1e9, "kB": 1e3, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
PER_SECOND = {"": 1.0, "/s": 1.0}
SHARE = {"": 1.0, "%": 1e-2}

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_QUANTITY = re.compile(rf"({NUMBER})\s*([a-zA-Z%/]*)")


def parse_quantity(text: str, units: Mapping[str, float]) -> float | None:
    """Return a number in the unit that `units` gives as 1; None if the text is no number.

    Raises:
        ConfigError: The unit is missing or none of these.
    """
    match = _QUANTITY.fullmatch(text.strip())
    # No number at all: it may be something else, such as the name of a candidate.
    if match is None:
        return None
    number, unit = match.groups()
    if unit not in units:
        known = ", ".join(filter(None, units))
        got = f"the unit '{unit}'" if unit else "no unit"
        raise ConfigError(
            f"'{text.strip()}' has {got}, expected {known}.",
            hint=did_you_mean(unit, filter(None, units))
            or f"Example: {number} {next(iter(units))}",
        )
    return float(number) * units[unit]


def parse_seconds(text: str, *, option: str) -> float:
    """Read a time such as `5s` or `500ms` as seconds; a number without a unit means seconds.

    Raises:
        ConfigError: It is no such time.
    """
    try:
        ms = parse_quantity(text, {**MILLISECONDS, "": 1e3})
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.message}", hint=error.hint) from error
    if ms is None:
        raise ConfigError(f"{option} is '{text}', expected a time such as 5s or 500ms.")
    return ms / 1e3
