"""The tables that a person reads: a plan with its seconds, and what the timings came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

from tests.gpu.plan import BUILD_S
from tests.gpu.steps import Facts, Result, Step


def plan_lines(stage: str, steps: Sequence[Step], budget_s: float) -> Iterator[str]:
    """Yield the steps of a stage by kind, with the second at which each kind should be done."""
    at = BUILD_S
    yield f"{stage}: {budget_s:g} s"
    yield f"  {at:6.0f} s  build, unless it was built before"
    for kind, members in groupby(steps, key=_kind):
        group = list(members)
        fitting = [step for step in group if at + step.expected_s <= budget_s]
        at += sum(step.expected_s for step in fitting)
        cut = f", {len(group) - len(fitting)} cut" if len(fitting) < len(group) else ""
        yield f"  {at:6.0f} s  {len(group):4d} x {kind}{cut}"


def _kind(step: Step) -> str:
    job, *_ = step.name.split("/")
    details = [str(step.arguments[name]) for name in ("dtype", "share") if name in step.arguments]
    return " ".join([job, *details])


def timing_lines(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each timing: ours, and how often the others take as long."""
    for result in results:
        facts = result.facts
        if "candidates" in facts:
            ours = next(iter(cast(dict[str, Facts], facts["candidates"]).values()))
            yield f"{result.step:44} {ours['us']:9.1f} us  {' '.join(_others(facts))}"


def _others(facts: Facts) -> Iterator[str]:
    for kind in ("gated", "plain"):
        if f"best_{kind}" in facts:
            yield f"{facts[f'times_best_{kind}']:.2f} x {facts[f'best_{kind}']}"
