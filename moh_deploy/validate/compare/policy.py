"""Tolerances of the user's own, in a YAML file over the built-in table."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.base import Runner
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.units import NUMBER
from moh_deploy.validate.accuracy import metric_parity
from moh_deploy.validate.accuracy.task import BUILT_IN_METRICS
from moh_deploy.validate.compare import tolerances as rules
from moh_deploy.validate.compare.tolerances import BUILT_IN, TOLERANCES, Tolerance

# Conditions on what a package computes: `top-1 >= 0.98 * reference`, `flips <= 0`, `parity`.
#
# condition = "parity" | "flips" "<=" number ["%"] | metric comparison factor "*" "reference"

PARITY, FLIPS, REFERENCE = "parity", "flips", "reference"

_CONDITION = re.compile(r"\s*([\w:.-]+)\s*(<=|>=)\s*(?!=)(.+?)\s*")
_FACTOR = re.compile(rf"(?:({NUMBER})\s*\*\s*)?{REFERENCE}")
_COUNT = re.compile(rf"({NUMBER})\s*(%?)")
_EXAMPLES = "Examples: 'top-1 >= 0.98 * reference', 'perplexity <= 1.02 * reference', 'flips <= 0',"
_EXAMPLES += " 'flips <= 0.1 %', 'parity'."
_LOWER_IS_BETTER = ("perplexity",)


@dataclass(frozen=True)
class ParityCondition:
    """The condition `parity`: `verify` finds the package equal, by the rule for its precision."""

    text: str


@dataclass(frozen=True)
class FlipsCondition:
    """The condition `flips`: so many tokens may choose other heads, each counted once a layer."""

    text: str
    most: float  # So many, or this share
    is_share: bool  # `most` is a share of all tokens

    def allowed(self, tokens: int) -> float:
        """Return how many of so many tokens may."""
        return self.most * tokens if self.is_share else self.most


@dataclass(frozen=True)
class AccuracyCondition:
    """A condition on a metric: how much worse than the reference's it may be."""

    text: str
    metric: str  # `top-1`, `top-5`, `perplexity`, or `MODULE:FUNCTION`
    better: metric_parity.Better
    rule: metric_parity.AccuracyRule  # The same as what may be lost


Condition: TypeAlias = ParityCondition | FlipsCondition | AccuracyCondition


def parse_condition(text: str) -> Condition:
    """Read a condition from what a user wrote.

    Raises:
        ConfigError: It is of another form, or can never hold.
    """
    if text.strip() == PARITY:
        return ParityCondition(text)
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"'{text}' is no condition, expected METRIC >= FACTOR * reference, flips <= NUMBER or"
            " parity.",
            hint=_EXAMPLES,
        )
    name, comparison, limit = match.groups()
    return _flips(text, comparison, limit) if name == FLIPS else _accuracy(text, *match.groups())


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Read all of them; each metric may stand in one.

    Raises:
        ConfigError: One is of another form, two are of one metric, or all are missing.
    """
    if not texts:
        raise ConfigError("no condition is given, expected at least one.", hint=_EXAMPLES)
    found = tuple(map(parse_condition, texts))
    metrics = [condition.metric for condition in _on_metrics(found)]
    for name in metrics:
        if metrics.count(name) > 1:
            raise ConfigError(f"{metrics.count(name)} conditions are about {name}, expected one.")
    return found


def metrics_of(conditions: Sequence[Condition], *, has_labels: bool) -> tuple[str, ...]:
    """Return the metrics that conditions are about, in their order.

    Raises:
        ConfigError: There are some, and no labels.
    """
    metrics = tuple(condition.metric for condition in _on_metrics(conditions))
    if metrics and not has_labels:
        raise ConfigError(
            f"the condition on {metrics[0]} needs labels, and none are given.",
            hint="Name them: --labels FILE|MEMBER, of the samples in --inputs.",
        )
    return metrics


def better_of(conditions: Sequence[Condition]) -> metric_parity.Better | None:
    """Return which values of the user's own metrics are better; None without any.

    Raises:
        ConfigError: Conditions bound them from both sides.
    """
    sides = {on.better for on in _on_metrics(conditions) if ":" in on.metric}
    if len(sides) > 1:
        raise ConfigError(
            "conditions bound metrics of your own from both sides, expected one side for all.",
            hint="Let one function return its values with the other sign.",
        )
    return next(iter(sides), None)


def _on_metrics(conditions: Sequence[Condition]) -> list[AccuracyCondition]:
    return [condition for condition in conditions if isinstance(condition, AccuracyCondition)]


def _flips(text: str, comparison: str, limit: str) -> FlipsCondition:
    match = _COUNT.fullmatch(limit)
    if comparison != "<=" or match is None:
        raise ConfigError(
            f"condition '{text}': flips are bounded from above by a number, or a share in %.",
            hint="Examples: 'flips <= 0', 'flips <= 0.1 %'.",
        )
    number, percent = match.groups()
    return FlipsCondition(text, float(number) / (100 if percent else 1), bool(percent))


def _accuracy(text: str, name: str, comparison: str, limit: str) -> AccuracyCondition:
    if name not in BUILT_IN_METRICS and ":" not in name:
        known = (*BUILT_IN_METRICS, FLIPS, PARITY)
        raise ConfigError(
            f"condition '{text}': there is no metric '{name}', there are {', '.join(known)} and"
            " MODULE:FUNCTION.",
            hint=did_you_mean(name, known) or None,
        )
    match = _FACTOR.fullmatch(limit)
    if match is None:
        # A bound without a reference would need an interval of the metric itself, which is wider
        # than that of a difference on the same samples.
        raise ConfigError(
            f"condition '{text}': the limit is '{limit}', expected FACTOR * reference: a metric is"
            " bounded beside what the float32 package reaches on the same samples.",
            hint=_EXAMPLES,
        )
    better: metric_parity.Better = "higher" if comparison == ">=" else "lower"
    if name in BUILT_IN_METRICS and (better == "lower") != (name in _LOWER_IS_BETTER):
        right = "<=" if name in _LOWER_IS_BETTER else ">="
        raise ConfigError(
            f"condition '{text}' bounds {name} from the side that is good, expected {right}."
        )
    factor = float(match[1] or 1)
    loss = 1 - factor if better == "higher" else factor - 1
    # Nothing more than all can be lost of a score; of an error there is no end.
    if not 0 < loss < (1 if better == "higher" else math.inf):
        raise ConfigError(
            f"condition '{text}': the factor is {factor:g}, expected one that allows a loss: no"
            " number of samples shows that nothing was lost.",
            hint=_EXAMPLES,
        )
    usual = metric_parity.ACCURACY_RULES.get(
        name, metric_parity.ACCURACY_RULES[metric_parity.CALLABLE]
    )
    rule = metric_parity.AccuracyRule(None, loss, usual.min_samples, f"asked for: {text.strip()}")
    return AccuracyCondition(text, name, better, rule)


# Fields of `Tolerance` that a file may set, by the same names.
_NUMBERS = ("relative", "near_tie", "relative_after_flip", "floor_factor", "peak_factor", "least")
_ACCURACY_NUMBERS = ("max_drop", "max_relative_drop", "min_samples")


@dataclass(frozen=True)
class Policy:
    """The tolerances of outputs, layers and metrics."""

    tolerances: Mapping[str, Tolerance]
    source: str  # Where they come from, for the report
    accuracy: Mapping[str, metric_parity.AccuracyRule] = field(
        default_factory=lambda: metric_parity.ACCURACY_RULES
    )
    flips: tuple[FlipsCondition, ...] = ()  # How many tokens may choose other heads, ties included

    def rule(self, dtype: str) -> Tolerance:
        """Return the rule for a dtype; see `tolerance_for`."""
        return rules.tolerance_for(dtype, self.tolerances)

    def model_rule(self, precision: str, runner: Runner) -> Tolerance:
        """Return the rule for a model's precision and for what its kernels round to."""
        return rules.coarsest(*map(self.rule, rules.rules_of(precision, runner)))

    def output_rule(self, dtype: str, model_rule: Tolerance) -> Tolerance:
        """Return the rule for an output; see `output_rule`."""
        return rules.output_rule(dtype, self.rule(dtype), model_rule)

    def accuracy_rule(self, metric: str) -> metric_parity.AccuracyRule:
        """Return the rule for a metric; all that are no built-in ones have one in common."""
        return self.accuracy.get(metric, self.accuracy[metric_parity.CALLABLE])

    def check_metrics(self, running: Collection[str]) -> None:
        """Refuse rules of the user's own for metrics that do not run: they would judge nothing.

        Args:
            running: Names of the metrics that run; empty without labels.

        Raises:
            ConfigError: There is such a rule.
        """
        judged = {name if name in self.accuracy else metric_parity.CALLABLE for name in running}
        for name, rule in self.accuracy.items():
            if metric_parity.ACCURACY_RULES.get(name) != rule and name not in judged:
                runs = f"metrics that run: {', '.join(running)}" if running else "no metric runs"
                raise ConfigError(
                    f"{self.source}: accuracy.{name} judges nothing: {runs}.",
                    hint="Take the entry out, or let the metric run: --labels FILE --metric NAME.",
                )

    def within(self, conditions: Sequence[Condition]) -> Policy:
        """Return the policy that asks for some conditions besides; `parity` is asked for anyway."""
        limits = {condition.metric: condition.rule for condition in _on_metrics(conditions)}
        flips = tuple(asked for asked in conditions if isinstance(asked, FlipsCondition))
        return replace(self, accuracy={**self.accuracy, **limits}, flips=flips)


BUILT_IN_POLICY: Policy = Policy(TOLERANCES, BUILT_IN)


def read_policy(path: Path) -> Policy:
    """Read `tolerances:`, dtype to the figures that replace those of the built-in table, and
    `accuracy:`, metric to the same.

    Every entry says why, in `reason`.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    # Unknown keys are errors at every level: a misspelt tolerance would else be the built-in one.
    entries = _mapping(read_yaml(path, error=ConfigError), f"{path}", ("tolerances", "accuracy"))
    changed, metrics = {}, {}
    if "tolerances" in entries:
        where = f"{path}: tolerances"
        for name, entry in _mapping(entries["tolerances"], where, tuple(TOLERANCES)).items():
            numbers, reason = _figures(entry, _NUMBERS, f"{where}.{name}")
            # What the entry leaves out stays as it is in the built-in table.
            changed[name] = replace(TOLERANCES[name], reason=reason, **numbers)
    if "accuracy" in entries:
        for name, entry in _mapping(entries["accuracy"], f"{path}: accuracy").items():
            metrics[name] = _accuracy_rule(name, entry, f"{path}: accuracy.{name}")
    return Policy(
        {**TOLERANCES, **changed},
        f"{path} ({', '.join((*changed, *metrics))}) over {BUILT_IN}",
        {**metric_parity.ACCURACY_RULES, **metrics},
    )


def _accuracy_rule(name: str, entry: object, where: str) -> metric_parity.AccuracyRule:
    if name not in metric_parity.ACCURACY_RULES and ":" not in name:
        raise ConfigError(
            f"{where} is not one of {', '.join(metric_parity.ACCURACY_RULES)}, nor MODULE:FUNCTION."
        )
    numbers, reason = _figures(entry, _ACCURACY_NUMBERS, where)
    # Two limits would raise the question which one applies.
    if len(numbers.keys() & {"max_drop", "max_relative_drop"}) == 2:
        raise ConfigError(f"{where} has max_drop and max_relative_drop: one of them is the limit.")
    # A metric of the user's own, MODULE:FUNCTION, starts from the rule for callables.
    usual = metric_parity.ACCURACY_RULES.get(
        name, metric_parity.ACCURACY_RULES[metric_parity.CALLABLE]
    )
    least = numbers.get("min_samples", usual.min_samples)
    if least != int(least) or least < 1:
        raise ConfigError(f"{where}.min_samples is {least}, expected a whole number, 1 or more.")
    relative = numbers.get("max_relative_drop", usual.max_relative_drop)
    return metric_parity.AccuracyRule(numbers.get("max_drop"), relative, int(least), reason)


def _figures(entry: object, names: Sequence[str], where: str) -> tuple[dict[str, float], str]:
    """Return the numbers that an entry sets, and the reason that it gives."""
    figures = _mapping(entry, where, (*names, "reason"))
    numbers = {}
    for name in names:
        value = figures.get(name, 0)
        # In Python a bool is an int.
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not 0 <= float(str(value)) < math.inf:
            raise ConfigError(
                f"{where}.{name} is {value!r}, expected a finite number, 0 or more.",
                hint="YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else None,
            )
        if name in figures:
            numbers[name] = float(str(value))
    reason = figures.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{where}.reason is {reason!r}, expected a sentence that says why.")
    return numbers, reason


def _mapping(value: object, where: str, known: tuple[str, ...] = ()) -> dict[str, object]:
    """Return a mapping that is not empty; its keys are known ones, if these are given."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where} holds {value!r}, expected a mapping.")
    for key in value:
        if known and str(key) not in known:
            raise ConfigError(f"{where}: '{key}' is not one of {', '.join(known)}.")
    return {str(key): item for key, item in value.items()}
