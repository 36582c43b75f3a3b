"""Conditions on what a package computes: `top-1 >= 0.98 * reference`, `flips <= 0`, `parity`.

condition = "parity" | "flips" "<=" number ["%"] | metric comparison factor "*" "reference"
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from moh_deploy.errors import ConfigError
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.units import NUMBER
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.rules import ACCURACY_RULES, CALLABLE, AccuracyRule
from moh_deploy.validate.accuracy.task import BUILT_IN_METRICS

PARITY, FLIPS, REFERENCE = "parity", "flips", "reference"

_CONDITION = re.compile(r"\s*([\w:.-]+)\s*(<=|>=)\s*(?!=)(.+?)\s*")
_FACTOR = re.compile(rf"(?:({NUMBER})\s*\*\s*)?{REFERENCE}")
_COUNT = re.compile(rf"({NUMBER})\s*(%?)")
_EXAMPLES = "Examples: 'top-1 >= 0.98 * reference', 'perplexity <= 1.02 * reference', 'flips <= 0',"
_EXAMPLES += " 'flips <= 0.1 %', 'parity'."
_LOWER_IS_BETTER = ("perplexity",)


@dataclass(frozen=True)
class ParityCondition:
    """The condition `parity`: `verify` finds the package equal, by the rule for its precision.

    Attributes:
        text: As it was written.
    """

    text: str


@dataclass(frozen=True)
class FlipsCondition:
    """The condition `flips`: so many tokens may choose other heads, each counted once a layer.

    Attributes:
        text: As it was written.
        most: So many, or this share.
        is_share: `most` is a share of all tokens.
    """

    text: str
    most: float
    is_share: bool

    def allowed(self, tokens: int) -> float:
        """Return how many of so many tokens may."""
        return self.most * tokens if self.is_share else self.most


@dataclass(frozen=True)
class AccuracyCondition:
    """A condition on a metric: how much worse than the reference's it may be.

    Attributes:
        text: As it was written.
        metric: `top-1`, `top-5`, `perplexity`, or `MODULE:FUNCTION`.
        better: Which values are.
        rule: The same as what may be lost.
    """

    text: str
    metric: str
    better: Better
    rule: AccuracyRule


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
        ConfigError: One is of another form, two are of one metric, or there is none.
    """
    if not texts:
        raise ConfigError("no condition is given, expected at least one.", hint=_EXAMPLES)
    found = tuple(map(parse_condition, texts))
    metrics = [
        parity_condition.metric
        for parity_condition in found
        if isinstance(parity_condition, AccuracyCondition)
    ]
    for name in metrics:
        if metrics.count(name) > 1:
            raise ConfigError(f"{metrics.count(name)} conditions are about {name}, expected one.")
    return found


def metrics_of(conditions: Sequence[Condition], *, has_labels: bool) -> tuple[str, ...]:
    """Return the metrics that conditions are about, in their order.

    Raises:
        ConfigError: There are some, and no labels.
    """
    metrics = tuple(
        condition.metric for condition in conditions if isinstance(condition, AccuracyCondition)
    )
    if metrics and not has_labels:
        raise ConfigError(
            f"the condition on {metrics[0]} needs labels, and there are none.",
            hint="Name them: --labels FILE|MEMBER, of the samples in --inputs.",
        )
    return metrics


def better_of(conditions: Sequence[Condition]) -> Better | None:
    """Return which values of the user's own metrics are better; None without any.

    Raises:
        ConfigError: Conditions bound them from both sides.
    """
    on_metrics = [condition for condition in conditions if isinstance(condition, AccuracyCondition)]
    sides = {metric.better for metric in on_metrics if ":" in metric.metric}
    if len(sides) > 1:
        raise ConfigError(
            "conditions bound metrics of your own from both sides, expected one side for all.",
            hint="Let one function return its values with the other sign.",
        )
    return next(iter(sides), None)


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
    better: Better = "higher" if comparison == ">=" else "lower"
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
    usual = ACCURACY_RULES.get(name, ACCURACY_RULES[CALLABLE])
    rule = AccuracyRule(None, loss, usual.min_samples, f"asked for: {text.strip()}")
    return AccuracyCondition(text, name, better, rule)
