"""The plan of the GPU tests: names, budgets, and what is cut first."""

from pathlib import Path

import pytest

from tests.cuda.stage_runs import MACHINE
from tests.gpu import plan, workloads
from tests.gpu.plan import BUDGETS_S, STAGES, Ingredients
from tests.gpu.report import plan_lines
from tests.gpu.steps import Step


def ingredients(sizes: workloads.Sizes = workloads.FULL) -> Ingredients:
    cases = [
        (f"{op}/{i}/{dtype}", op, dtype)
        for op in ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")
        for dtype in ("float32", "float16", "bfloat16")
        for i in range(54)
    ]
    return Ingredients(sizes, cases, [str(i) for i in range(22)], None, Path("out"))


@pytest.mark.parametrize("stage", STAGES)
def test_names_of_steps_are_unique(stage: str):
    names = [step.name for step in plan.steps_of(stage, ingredients())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("stage", ["correct", "deep"])
def test_stage_fits_into_its_budget(stage: str):
    steps = plan.steps_of(stage, ingredients())
    assert sum(step.expected_s for step in steps[1:]) <= BUDGETS_S[stage]


def test_timings_that_do_not_fit_are_of_the_least_value():
    """What is measured for certain: every shape in float16 at every share, and all other ops."""
    fitting = BUDGETS_S["speed"]
    certain = []
    for step in plan.steps_of("speed", ingredients())[1:]:
        fitting -= step.expected_s
        certain += [step.name] if fitting >= 0 else []
    attention = {
        f"attention/{shape.name}/float16/{share}"
        for shape in workloads.FULL.attention
        for share in (1.0, 0.9, 0.75, 0.5, 0.25)
    }
    compiled = {f"attention-compiled/{s.name}/float16/0.75" for s in workloads.FULL.attention}
    assert attention | compiled <= set(certain)
    kinds = {name.split("/")[0] for name in certain}
    assert kinds >= {"copy", "matrices", "aggregated", "router"}
    assert any("bfloat16" in name for name in certain)


def test_ops_and_dtypes_take_turns():
    steps = [s for s in plan.steps_of("correct", ingredients()) if s.job == "case"]
    assert len({tuple(s.name.split("/")[1::2]) for s in steps[:9]}) == 9


def test_plan_says_when_each_kind_is_done_and_what_is_cut():
    sizes = {"a/1": 30, "a/2": 60, "b": 30}
    steps = [MACHINE, *(Step(name, "job", expected_s=size) for name, size in sizes.items())]
    assert list(plan_lines("speed", steps, 60)) == [
        "speed: 60 s after the build",
        "       1 s  machine",
        "      20 s  build, unless it was built before",
        "      30 s     2 x a, 1 cut",
        "      60 s     1 x b",
    ]
