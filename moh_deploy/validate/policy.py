"""Tolerances of the user's own, in a YAML file over the built-in table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from moh_deploy.errors import ConfigError
from moh_deploy.validate.tolerances import BUILT_IN, TOLERANCES, Tolerance, tolerance_for

_NUMBERS = ("relative", "near_tie", "relative_after_flip", "floor_factor", "least")
_KEYS = (*_NUMBERS, "reason")


@dataclass(frozen=True)
class Policy:
    """What counts as equal.

    Attributes:
        tolerances: A rule for each dtype.
        source: Where they come from, for the report.
    """

    tolerances: Mapping[str, Tolerance]
    source: str

    def rule(self, dtype: str) -> Tolerance:
        """Return the rule for a dtype; see `tolerance_for`."""
        return tolerance_for(dtype, self.tolerances)


BUILT_IN_POLICY = Policy(TOLERANCES, BUILT_IN)


def read_policy(path: Path) -> Policy:
    """Read `tolerances:`, dtype to the figures that replace those of the built-in table.

    Every entry says why, in `reason`.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    entries = _mapping(_read(path), f"{path}")
    _known(entries, ("tolerances",), f"{path}")
    rules = _mapping(entries.get("tolerances"), f"{path}: tolerances")
    _known(rules, TOLERANCES, f"{path}: tolerances")
    changed = {name: _rule(name, rules[name], f"{path}: tolerances.{name}") for name in rules}
    return Policy({**TOLERANCES, **changed}, f"{path} ({', '.join(changed)}) over {BUILT_IN}")


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}.") from error


def _rule(name: str, entry: object, where: str) -> Tolerance:
    figures = _mapping(entry, where)
    _known(figures, _KEYS, where)
    numbers = {key: _number(figures[key], f"{where}.{key}") for key in _NUMBERS if key in figures}
    reason = figures.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{where}.reason is {reason!r}, expected a sentence that says why.")
    return replace(TOLERANCES[name], reason=reason, **numbers)


def _number(value: object, where: str) -> float:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not 0 <= float(str(value)) < float("inf"):
        raise ConfigError(
            f"{where} is {value!r}, expected a finite number, 0 or more.",
            hint="YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else None,
        )
    return float(str(value))


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where} holds {value!r}, expected a mapping.")
    return {str(key): item for key, item in value.items()}


def _known(
    found: Mapping[str, object], known: Mapping[str, object] | tuple[str, ...], where: str
) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(f"{where}: '{key}' is none of {', '.join(known)}.")
