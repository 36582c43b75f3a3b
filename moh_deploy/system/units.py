"""Read quantities with a unit that users write: `5s`, `2 GiB`, `80 %`."""

import re
from collections.abc import Mapping, Sequence

from moh_deploy.errors import ConfigError

# Each table gives what a unit is in the metric's own one, which is 1. Units are case-sensitive: MB
# is 10^6 bytes, MiB 2^20.
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
BYTES = {"MB": 1e6, "GB": 1e9, "kB": 1e3, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
PER_SECOND = {"": 1.0, "/s": 1.0}
SHARE = {"": 1.0, "%": 1e-2}

# What is measured in seconds is mostly of seconds: examples take the first.
_TIMES = {**{unit: MILLISECONDS[unit] for unit in ("s", "ms", "min", "us")}, "": 1e3}
_SPELLED = {
    "us": ("usec", "microsecond"),
    "ms": ("msec", "milli", "millisecond"),
    "s": ("sec", "second"),
    "min": ("m", "minute"),
}

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
        known_units = list(filter(None, units))
        known = ", ".join(known_units)
        got = f"the unit '{unit}'" if unit else "no unit"
        raise ConfigError(
            f"'{text.strip()}' has {got}, expected {known}.",
            hint=_unit_meant(unit, known_units) or f"Example: {number} {known_units[0]}",
        )
    return float(number) * units[unit]


def _unit_meant(unit: str, known: Sequence[str]) -> str:
    """Return `Did you mean 's'?` for `sec`, or an empty string.

    Of names as short as these, another that looks like it is mostly another quantity.
    """
    plain = unit.lower().removesuffix("s") or unit
    for name in known:
        others = (name, *_SPELLED.get(name, ()))
        if unit.lower() in map(str.lower, others) or plain in others:
            return f"Did you mean '{name}'?"
    return ""


def parse_seconds(text: str, *, option: str) -> float:
    """Read a time such as `5s` or `500ms` as seconds; a number without a unit means seconds.

    Raises:
        ConfigError: It is no such time.
    """
    try:
        ms = parse_quantity(text, _TIMES)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.message}", hint=error.hint) from error
    if ms is None:
        raise ConfigError(f"{option} is '{text}', expected a time such as 5s or 500ms.")
    return ms / 1e3
