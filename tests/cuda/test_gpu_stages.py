"""A stage of the GPU tests loses one step to whatever goes wrong in it, and nothing else."""

import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.gpu import plan, workloads
from tests.gpu.build import BuildFailed, build, target
from tests.gpu.plan import BUDGETS_S, STAGES, Ingredients
from tests.gpu.report import Report
from tests.gpu.stage import NothingTested, Options, conclude, run_stage
from tests.gpu.steps import Step
from tests.gpu.tools import Tools
from tests.nightly import nightly, sampled

STUB = (sys.executable, "-m", "tests.cuda.stub_worker")
MACHINE = Step("machine", "machine", timeout_s=20)


def run_steps(folder: Path, steps: list[Step], budget_s: float = 60.0) -> Report:
    library = folder / "library.so"
    library.touch()
    report = Report(folder / "out" / "stage.json", {"stage": "test"})
    run_stage(
        steps,
        report,
        Options(library, "cpu", folder / "cases.npz", folder / "out", STUB, budget_s),
    )
    return report


@pytest.mark.parametrize(
    ("job", "status", "problem"),
    [
        ("illegal_access", "crashed", "its process was ended by SIGSEGV"),
        ("exits", "crashed", "its process ended with exit status 7"),
        ("sticky", "failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("late", "failed", "an illegal memory access was encountered"),
        ("exception", "failed", "ValueError: an odd shape"),
        ("wrong", "wrong", "3 of 8 elements are wrong"),
        ("missing", "missing", "no such tool"),
    ],
)
def test_what_goes_wrong_ends_one_step(tmp_path: Path, job: str, status: str, problem: str):
    steps = [MACHINE, Step(job, job, timeout_s=20), Step("after", "measured")]
    wrong, after = run_steps(tmp_path, steps).results
    assert (wrong.status, wrong.problem, after.status) == (status, problem, "passed")


def test_step_that_hangs_is_killed(tmp_path: Path):
    steps = [MACHINE, Step("stuck", "hang", timeout_s=0.5), Step("after", "measured")]
    start = time.monotonic()
    report = run_steps(tmp_path, steps)
    assert time.monotonic() - start < 20
    assert [result.status for result in report.results] == ["hung", "passed"]
    assert conclude(report) == 1


def test_budget_cuts_what_does_not_fit_and_says_so(tmp_path: Path):
    steps = [
        Step("first", "measured", expected_s=1),
        Step("too long", "measured", expected_s=100),
        Step("short", "measured", expected_s=1),
    ]
    report = run_steps(tmp_path, [MACHINE, *steps], budget_s=30)
    assert [result.status for result in report.results] == ["passed", "cut", "passed"]
    assert report.results[1].problem.startswith("it takes 100 s; ")
    assert conclude(report) == 0


# What a stage needs.


def test_missing_compiler_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match=r"nvcc was not found.*--library FILE"):
        build(90)
    options = Options(None, "cuda", tmp_path, tmp_path, STUB, 10)
    with pytest.raises(NothingTested, match="nvcc was not found"):
        run_stage([MACHINE], Report(tmp_path / "stage.json", {}), options)


def test_missing_library_is_said(tmp_path: Path):
    options = Options(tmp_path / "none.so", "cuda", tmp_path, tmp_path, STUB, 10)
    with pytest.raises(NothingTested, match=r"there is no file .*none\.so"):
        run_stage([MACHINE], Report(tmp_path / "stage.json", {}), options)


@nightly
def test_what_ships_is_compiled_for_one_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_tool(
        tmp_path / "nvcc",
        f'echo "$@" >>{tmp_path}/log; while [ $# -gt 1 ]; do shift; done; touch "$1"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tests.gpu.build.BUILDS", tmp_path / "build")
    monkeypatch.setattr("tests.gpu.build.find_spec", lambda _: None)
    build(90)
    commands = (tmp_path / "log").read_text().splitlines()
    assert all("-gencode=arch=compute_80,code=[sm_90,compute_80]" in line for line in commands)
    build(90)  # nothing has changed
    assert (tmp_path / "log").read_text().splitlines() == commands
    shipped = Path("plugins/cuda/nvcc.cmake").read_text()
    assert target(90) == "-gencode=arch=compute_80,code=[sm_90,compute_80]"
    assert "-gencode=arch=compute_80,code=[${machine_codes},compute_80]" in shipped


# Tools.


def write_tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Tools(Path("library.so"), "cpu", Path("cases.npz"), tmp_path)


SANITIZE: Mapping[str, object] = {"tool": "racecheck", "every": 7}
HELP = 'case "$1" in --help) echo "  --kernel-name arg"; exit 0;; esac; '


@pytest.mark.parametrize("option", ["--kernel-name", "--kernel-regex"])
def test_sanitizer_looks_at_our_kernels_alone(tools: Tools, tmp_path: Path, option: str):
    script = (
        HELP.replace("--kernel-name", option) + f'echo "$@" >{tmp_path}/log; env >{tmp_path}/env'
    )
    write_tool(tmp_path / "compute-sanitizer", script)
    tools.run("sanitize", 20, dict(SANITIZE))
    given = (tmp_path / "log").read_text()
    assert f"--tool=racecheck --error-exitcode=9 {option} kns=moh " in given
    assert given.endswith(
        "tests.gpu.bare --library=library.so --device=cpu --cases=cases.npz cases --every 7\n"
    )
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in (tmp_path / "env").read_text()


@sampled(3)
@pytest.mark.parametrize(
    ("script", "status", "problem"),
    [
        ("echo '1 hazard'; exit 9", "wrong", "exit status 9"),
        (
            "echo 'Device not supported'; exit 3",
            "failed",
            "RuntimeError: exit status 3\nDevice not",
        ),
        ("sleep 100", "hung", "not done after 0.5 s: killed"),
    ],
)
def test_tool_that_fails_is_one_step(
    tools: Tools, tmp_path: Path, script: str, status: str, problem: str
):
    write_tool(tmp_path / "compute-sanitizer", HELP + script)
    step = Step(
        "sanitize/racecheck", "sanitize", SANITIZE, timeout_s=0.5 if status == "hung" else 20
    )
    report = run_steps(tmp_path, [MACHINE, step, Step("after", "measured")])
    assert [result.status for result in report.results] == [status, "passed"]
    assert report.results[0].problem.startswith(problem)


def test_missing_tools_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv("CUDA_HOME", f"{tmp_path}")
    profile = {"kernel": "attend", "program": ["attention"]}
    steps = [Step("a", "sanitize", SANITIZE), Step("b", "profile", profile)]
    report = run_steps(tmp_path, [MACHINE, *steps])
    assert [result.problem for result in report.results] == [
        "compute-sanitizer was not found: it comes with CUDA's toolkit",
        "ncu was not found: it comes with CUDA's toolkit, or Nsight Compute",
    ]
    assert conclude(report) == 2  # nothing was tested
    assert conclude(run_steps(tmp_path, [MACHINE, *steps, Step("after", "measured")])) == 0


def test_stage_without_time_has_tested_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = run_steps(tmp_path, [MACHINE, Step("a", "measured")], budget_s=0)
    assert [result.status for result in report.results] == ["cut"]
    assert conclude(report) == 2
    assert "nothing was tested: no step has passed" in capsys.readouterr().out


# The plan.


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
    assert plan.BUILD_S + sum(step.expected_s for step in steps) <= BUDGETS_S[stage]


def test_timings_that_do_not_fit_are_of_the_least_value():
    """What is measured for certain: every shape in float16 at every share, and all other ops."""
    fitting = BUDGETS_S["speed"] - plan.BUILD_S
    certain = []
    for step in plan.steps_of("speed", ingredients()):
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
