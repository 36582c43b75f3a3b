"""Conditions on what was measured: `p50 <= 1.05 * baseline`, `peak_memory < 2 GiB`.

gate    = metric comparison limit
limit   = [factor "*"] candidate | number unit
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moh_deploy.errors import ConfigError
from moh_deploy.perf.bench.measured import METRICS, Measured
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.units import NUMBER, parse_quantity

BASELINE = "baseline"

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
# `(?!=)` refuses `>==` and `<==`, whose last sign would become part of the limit.
_GATE = re.compile(r"\s*([\w-]+)\s*(<=|>=|<|>)\s*(?!=)(.+?)\s*")
_FACTOR = re.compile(rf"({NUMBER})\s*\*\s*(.+)")
_EXAMPLES = "Examples: p50 <= 1.05 * baseline, p99 < 20 ms, throughput >= 100."


@dataclass(frozen=True)
class GateResult:
    """The verdict of a gate on one candidate and one set of inputs."""

    gate: str  # the gate
    contestant: str  # the candidate
    inputs: str  # what it ran on
    sizes: dict[str, int]  # at these sizes
    # What was measured, in ms, bytes, samples a second or cores; None if it was not.
    measured: float | None
    limit: float | None  # what it was compared with; None if that was not measured
    passed: bool  # both were measured, it holds, and neither candidate computes anything wrong
    reason: str  # the numbers in words, or why they are missing

    @property
    def sentence(self) -> str:
        """Return the gate, the candidate and the measured value as a sentence."""
        verb = "passed" if self.passed else "not measured" if self.measured is None else "failed"
        if self.limit is None:
            verb = "not measured"
        where = f"{self.contestant} on {self.inputs} inputs at {sizes_text(self.sizes)}"
        return f"gate '{self.gate}' {verb} for {where}: {self.reason}"


@dataclass(frozen=True)
class BenchGate:
    """One condition on what was measured."""

    text: str  # as it was written
    metric: str  # name of what is compared
    comparison: str  # `<=`, `>=`, `<` or `>`
    factor: float  # the limit, or what the other candidate's number is multiplied by
    other: str | None  # the candidate that it is compared with; None for a plain limit

    def judge(self, measured: Measured, others: Mapping[str, Measured]) -> GateResult:
        """Return whether a candidate meets this condition.

        Args:
            measured: The candidate.
            others: All candidates on the same inputs, by name.
        """
        metric = METRICS[self.metric]
        value = metric.read(measured)
        # `limit = factor * unit`: a plain limit is its own factor, in the metric's unit.
        unit = 1.0 if self.other is None else metric.read(others[self.other])
        limit = None if unit is None else self.factor * unit
        # What was not measured does not hold: a gate that cannot be checked must not pass.
        holds, reason = False, metric.why_missing
        if value is not None and limit is not None:
            holds = _COMPARISONS[self.comparison](value, limit)
            asked = f"{self.comparison} {metric.text(limit)}"
            if self.other is not None:
                times = f"{self.factor:g} * {metric.text(limit / self.factor)}"
                asked = f"{asked} ({times} of {self.other})"
            reason = f"{self.metric} is {metric.text(value)}, asked for {asked}"
        # A wrong answer passes no gate, however fast (ADR 26), nor does one beside a wrong one.
        wrong = measured.fault
        if wrong is None and self.other is not None and others[self.other].fault is not None:
            wrong = f"{self.other} is no measure: {others[self.other].fault}"
        return GateResult(
            gate=self.text,
            contestant=measured.contestant,
            inputs=measured.inputs,
            sizes=measured.sizes,
            measured=value,
            limit=limit,
            passed=holds and wrong is None,
            reason=reason if wrong is None else f"{reason}, but {wrong}",
        )


def parse_gate(text: str, *, candidates: Sequence[str], baselines: Sequence[str]) -> BenchGate:
    """Read a gate from what a user wrote.

    Args:
        text: The condition as written.
        candidates: Names of all candidates.
        baselines: Those of the baselines; `baseline` stands for the only one.

    Raises:
        ConfigError: It is of another form, or a metric, unit or candidate is unknown.
    """
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"'{text}' is no gate, expected METRIC <= [FACTOR *] CANDIDATE or METRIC <= NUMBER"
            " UNIT.",
            hint=_EXAMPLES,
        )
    # The limit is text still: what it may be depends on the metric's units and on the candidates.
    metric, comparison, limit = match.groups()
    if metric not in METRICS:
        raise ConfigError(
            f"gate '{text}': there is no metric '{metric}', there are {', '.join(METRICS)}.",
            hint=did_you_mean(metric, METRICS) or None,
        )
    # A candidate may be called like a quantity: a directory `20ms` is meant, where there is one.
    try:
        units = METRICS[metric].units
        number = None if limit in candidates else parse_quantity(limit, units)
    except ConfigError as error:
        raise ConfigError(f"gate '{text}': {error.message}", hint=error.hint) from error
    if number is not None:
        return BenchGate(text, metric, comparison, number, None)
    # No quantity, so it has to be a candidate, with a factor before it or without.
    scaled = _FACTOR.fullmatch(limit)
    factor, name = (float(scaled[1]), scaled[2]) if scaled else (1.0, limit)
    # A limit of 0 holds never or always, whatever was measured.
    if factor == 0:
        raise ConfigError(f"gate '{text}': the factor is 0, expected a number above 0.")
    return BenchGate(
        text, metric, comparison, factor, _candidate(text, name, candidates, baselines)
    )


def _candidate(text: str, name: str, candidates: Sequence[str], baselines: Sequence[str]) -> str:
    if name == BASELINE:
        if len(baselines) == 1:
            return baselines[0]
        there = (
            f"there are {len(baselines)}: {', '.join(baselines)}" if baselines else "none is given"
        )
        raise ConfigError(
            f"gate '{text}' is about the baseline, but {there}.",
            hint="Name one of them instead." if baselines else "Give one: --baseline dense.",
        )
    if name not in candidates:
        raise ConfigError(
            f"gate '{text}': there is no candidate '{name}', there are {', '.join(candidates)}.",
            hint=did_you_mean(name, [BASELINE, *candidates]) or _EXAMPLES,
        )
    return name
