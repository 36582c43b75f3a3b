"""Tolerances of the user's own, in a YAML file over the built-in table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import Runner
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.validate.accuracy.rules import ACCURACY_RULES, CALLABLE, AccuracyRule
from moh_deploy.validate.compare.condition import AccuracyCondition, Condition, FlipsCondition
from moh_deploy.validate.compare.tolerances import (
    BUILT_IN,
    TOLERANCES,
    Tolerance,
    coarsest,
    output_rule,
    rules_of,
    tolerance_for,
)

# Fields of `Tolerance` that a file may set, by the same names.
_NUMBERS = ("relative", "near_tie", "relative_after_flip", "floor_factor", "peak_factor", "least")
_KEYS = (*_NUMBERS, "reason")
_ACCURACY_NUMBERS = ("max_drop", "max_relative_drop", "min_samples")


@dataclass(frozen=True)
class Policy:
    """The tolerances of outputs, layers and metrics.

    Attributes:
        tolerances: A rule for each dtype.
        source: Where they come from, for the report.
        accuracy: A rule for each metric.
        flips: How many tokens may choose other heads, ties included.
    """

    tolerances: Mapping[str, Tolerance]
    source: str
    accuracy: Mapping[str, AccuracyRule] = field(default_factory=lambda: ACCURACY_RULES)
    flips: tuple[FlipsCondition, ...] = ()

    def rule(self, dtype: str) -> Tolerance:
        """Return the rule for a dtype; see `tolerance_for`."""
        return tolerance_for(dtype, self.tolerances)

    def model_rule(self, precision: str, runner: Runner) -> Tolerance:
        """Return the rule for a model's precision and for what its kernels round to."""
        return coarsest(*map(self.rule, rules_of(precision, runner)))

    def output_rule(self, dtype: str, model_rule: Tolerance) -> Tolerance:
        """Return the rule for an output; see `output_rule`."""
        return output_rule(dtype, self.rule(dtype), model_rule)

    def accuracy_rule(self, metric: str) -> AccuracyRule:
        """Return the rule for a metric; all that are no built-in ones have one in common."""
        return self.accuracy.get(metric, self.accuracy[CALLABLE])

    def check_metrics(self, running: Collection[str]) -> None:
        """Refuse rules of the user's own for metrics that do not run: they would judge nothing.

        Args:
            running: Names of the metrics that run; empty without labels.

        Raises:
            ConfigError: There is such a rule.
        """
        judged = {name if name in self.accuracy else CALLABLE for name in running}
        for name, rule in self.accuracy.items():
            if ACCURACY_RULES.get(name) != rule and name not in judged:
                runs = f"metrics that run: {', '.join(running)}" if running else "no metric runs"
                raise ConfigError(
                    f"{self.source}: accuracy.{name} judges nothing: {runs}.",
                    hint="Take the entry out, or let the metric run: --labels FILE --metric NAME.",
                )

    def within(self, conditions: Sequence[Condition]) -> Policy:
        """Return the policy that asks for some conditions besides; `parity` is asked for anyway."""
        on_metrics = (
            condition for condition in conditions if isinstance(condition, AccuracyCondition)
        )
        rules = {metric.metric: metric.rule for metric in on_metrics}
        flips = tuple(
            condition for condition in conditions if isinstance(condition, FlipsCondition)
        )
        return replace(self, accuracy={**self.accuracy, **rules}, flips=flips)


BUILT_IN_POLICY = Policy(TOLERANCES, BUILT_IN)


def read_policy(path: Path) -> Policy:
    """Read `tolerances:`, dtype to the figures that replace those of the built-in table, and
    `accuracy:`, metric to the same.

    Every entry says why, in `reason`.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    # Unknown keys are errors at every level: a misspelt tolerance would else be the built-in one.
    entries = _mapping(read_yaml(path, error=ConfigError), f"{path}")
    _known(entries, ("tolerances", "accuracy"), f"{path}")
    rules = _section(entries, "tolerances", path)
    _known(rules, TOLERANCES, f"{path}: tolerances")
    changed = {name: _rule(name, rules[name], f"{path}: tolerances.{name}") for name in rules}
    metrics = {
        name: _accuracy_rule(name, figures, f"{path}: accuracy.{name}")
        for name, figures in _section(entries, "accuracy", path).items()
    }
    return Policy(
        {**TOLERANCES, **changed},
        f"{path} ({', '.join((*changed, *metrics))}) over {BUILT_IN}",
        {**ACCURACY_RULES, **metrics},
    )


def _section(entries: Mapping[str, object], name: str, path: Path) -> Mapping[str, object]:
    return _mapping(entries[name], f"{path}: {name}") if name in entries else {}


def _rule(name: str, entry: object, where: str) -> Tolerance:
    figures = _mapping(entry, where)
    _known(figures, _KEYS, where)
    numbers = {key: _number(figures[key], f"{where}.{key}") for key in _NUMBERS if key in figures}
    # What the entry leaves out stays as it is in the built-in table.
    return replace(TOLERANCES[name], reason=_reason(figures, where), **numbers)


def _accuracy_rule(name: str, entry: object, where: str) -> AccuracyRule:
    if name not in ACCURACY_RULES and ":" not in name:
        raise ConfigError(f"{where} is none of {', '.join(ACCURACY_RULES)}, nor MODULE:FUNCTION.")
    figures = _mapping(entry, where)
    _known(figures, (*_ACCURACY_NUMBERS, "reason"), where)
    numbers = {k: _number(figures[k], f"{where}.{k}") for k in _ACCURACY_NUMBERS if k in figures}
    # Two limits would raise the question which one applies.
    if len(numbers.keys() & {"max_drop", "max_relative_drop"}) == 2:
        raise ConfigError(f"{where} has max_drop and max_relative_drop: one of them is the limit.")
    # A metric of the user's own, MODULE:FUNCTION, starts from the rule for callables.
    usual = ACCURACY_RULES.get(name, ACCURACY_RULES[CALLABLE])
    least = numbers.get("min_samples", usual.min_samples)
    if least != int(least) or least < 1:
        raise ConfigError(f"{where}.min_samples is {least}, expected a whole number, 1 or more.")
    return AccuracyRule(
        numbers.get("max_drop"),
        numbers.get("max_relative_drop", usual.max_relative_drop),
        int(least),
        _reason(figures, where),
    )


def _reason(figures: Mapping[str, object], where: str) -> str:
    reason = figures.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{where}.reason is {reason!r}, expected a sentence that says why.")
    return reason


def _number(value: object, where: str) -> float:
    # In Python a bool is an int.
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
