"""A stage of the GPU tests loses one step to whatever goes wrong in it, and nothing else."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.gpu import plan, workloads
from tests.gpu.build import BuildFailed, build, target, triton_code
from tests.gpu.isolated import Worker, run_command
from tests.gpu.plan import BUDGETS_S, STAGES, Ingredients
from tests.gpu.report import Report, plan_lines
from tests.gpu.stage import (
    MOST_ENDED_WORKERS,
    MOST_HUNG,
    NothingTested,
    Options,
    conclude,
    run_stage,
)
from tests.gpu.steps import Facts, Step
from tests.gpu.tools import TimedOut, Tools
from tests.nightly import nightly, sampled

STUB = (sys.executable, "-m", "tests.cuda.stub_worker")
MACHINE = Step("machine", "machine", timeout_s=20)


def run(folder: Path, *jobs: str, budget_s: float = 60.0, **options: float) -> dict[str, Facts]:
    """Run a stage of these jobs, a measurement between any two, and read its report."""
    steps = [MACHINE]
    for job in jobs:
        steps += [Step(job, job, timeout_s=20, **options), Step(f"after {job}", "measured")]
    report = run_steps(folder, steps, budget_s)
    return {row["step"]: row for row in json.loads(report.path.read_text())["rows"]}


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
        ("half", "crashed", "its process ended with exit status 9"),
        ("sticky", "failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("late", "failed", "an illegal memory access was encountered"),
        ("exception", "failed", "ValueError: an odd shape"),
        ("wrong", "wrong", "3 of 8 elements are wrong"),
        ("missing", "missing", "no such tool"),
    ],
)
def test_what_goes_wrong_ends_one_step(tmp_path: Path, job: str, status: str, problem: str):
    rows = run(tmp_path, job)
    assert (rows[job]["status"], rows[job]["problem"]) == (status, problem)
    assert rows[f"after {job}"]["status"] == "passed"


def test_end_of_the_output_of_a_crash_is_kept(tmp_path: Path):
    rows = run(tmp_path, "exception", "exits")
    output = str(rows["exits"]["output"])
    assert "what the driver says last" in output
    assert "an odd shape" not in output  # that of an earlier step


def test_step_that_hangs_is_killed(tmp_path: Path):
    steps = [MACHINE, Step("stuck", "hang", timeout_s=0.5), Step("after", "measured")]
    start = time.monotonic()
    report = run_steps(tmp_path, steps)
    assert time.monotonic() - start < 20
    assert [result.status for result in report.results] == ["hung", "passed"]
    assert conclude(report) == 1


def test_worker_stays_while_nothing_ends_it(tmp_path: Path):
    rows = run(tmp_path, "measured", "exception", "wrong", "sticky")
    pids = [rows[f"after {job}"]["pid"] for job in ("measured", "exception", "wrong", "sticky")]
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_fresh_step_has_a_process_of_its_own(tmp_path: Path):
    steps = [Step(str(i), "measured", fresh=i == 1) for i in range(3)]
    pids = [result.facts["pid"] for result in run_steps(tmp_path, [MACHINE, *steps]).results]
    assert pids[0] != pids[1] == pids[2]


def test_what_libraries_print_is_no_result(tmp_path: Path):
    row = run(tmp_path, "noise")["noise"]
    assert (row["status"], row["us"]) == ("passed", "inf")


def test_kind_of_step_that_keeps_ending_processes_is_cut(tmp_path: Path):
    steps = [Step(f"case/op/{i}", "exits") for i in range(MOST_ENDED_WORKERS + 2)]
    report = run_steps(tmp_path, [MACHINE, *steps, Step("case/other/0", "measured")])
    statuses = [result.status for result in report.results]
    assert statuses == ["crashed"] * MOST_ENDED_WORKERS + ["cut", "cut", "passed"]
    assert report.results[-2].problem == f"{MOST_ENDED_WORKERS} processes have ended in a case/op"


def test_kind_of_step_that_has_hung_twice_is_cut(tmp_path: Path):
    steps = [Step(f"primitive/{i}", "hang", timeout_s=0.2) for i in range(MOST_HUNG + 1)]
    report = run_steps(tmp_path, [MACHINE, *steps, Step("case/other/0", "measured")])
    statuses = [result.status for result in report.results]
    assert statuses == ["hung"] * MOST_HUNG + ["cut", "passed"]
    assert report.results[-2].problem == f"{MOST_HUNG} steps of primitive have hung"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("copy", "copy"),
        ("primitive/votes", "primitive"),
        ("case/MoHRouter/plain/float32", "case/MoHRouter"),
        ("attention/LLaMA-2k/float16/0.75", "attention/LLaMA-2k"),
    ],
)
def test_kind_is_less_than_the_name(name: str, kind: str):
    assert Step(name, "job").kind == kind


def test_loading_is_not_of_the_time_of_a_step(tmp_path: Path):
    """A step of hundredths of a second that hangs is killed soon, however long torch takes."""
    loading = "import time, runpy; time.sleep(1.0);"
    stub = "runpy.run_module('tests.cuda.stub_worker', run_name='__main__')"
    worker = Worker([sys.executable, "-c", loading + stub])
    assert worker.run(Step("a", "measured", timeout_s=0.5), {"library": ""}, 0.5).status == "passed"
    worker.close()


def test_device_is_asked_again_at_the_end(tmp_path: Path):
    report = run_steps(tmp_path, [MACHINE, Step("a", "exits")])
    assert json.loads(report.path.read_text())["machine_afterwards"]["card"] == "stub"


def test_budget_begins_when_the_library_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def built(compute_capability: int) -> tuple[Path, str]:
        time.sleep(1.0)
        return tmp_path / "library.so", "Triton 3.3 is too old"

    monkeypatch.setattr("tests.gpu.stage.build", built)
    report = Report(tmp_path / "stage.json", {"stage": "test"})
    steps = [MACHINE, Step("a", "measured", expected_s=0.5)]
    run_stage(steps, report, Options(None, "cuda", tmp_path, tmp_path, STUB, 1.0))
    assert [result.status for result in report.results] == ["passed"]
    assert json.loads(report.path.read_text())["without_triton"] == "Triton 3.3 is too old"


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


def test_report_is_whole_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    add = Report.add

    def adding(self: Report, result: object) -> None:
        add(self, result)
        seen.append([row["step"] for row in json.loads(self.path.read_text())["rows"]])

    monkeypatch.setattr(Report, "add", adding)
    run(tmp_path, "exits")
    assert seen == [["exits"], ["exits", "after exits"]]


def test_full_disk_loses_only_what_has_no_room(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A limit on the size of files stands for it: writing fails in the same place."""
    script = (
        "import resource, tests.cuda.test_gpu_stages as t, pathlib;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500));"
        f"steps = [t.MACHINE, *(t.Step(str(i), 'measured') for i in range(40))];"
        f"report = t.run_steps(pathlib.Path({str(tmp_path)!r}), steps);"
        "raise SystemExit(t.conclude(report))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1, ran.stderr
    printed = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [row["step"] for row in printed] == [str(i) for i in range(40)]
    assert "stage.json could not be written: File too large" in ran.stdout
    kept = json.loads((tmp_path / "out" / "stage.json").read_text())["rows"]
    assert 5 < len(kept) < 40
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage.json"]


def test_report_is_written_as_soon_as_there_is_room(tmp_path: Path):
    blocked = tmp_path / "out"
    blocked.touch()  # no folder can be made here
    report = Report(blocked / "stage.json", {"stage": "test"})
    assert report.problem
    blocked.unlink()
    report.note(seconds=1.0)
    assert (report.problem, json.loads(report.path.read_text())["rows"]) == ("", [])


def test_worker_that_cannot_start_is_said(tmp_path: Path):
    worker = Worker([sys.executable, "-c", "raise SystemExit('no torch here')"])
    result = worker.run(MACHINE, {}, 20)
    assert result.status == "crashed"
    assert "no torch here" in str(result.facts["output"])


@nightly
def test_grandchildren_are_killed_too():
    script = (
        "import subprocess as s;p = s.Popen(['sleep', '3600']); print(p.pid, flush=True); p.wait()"
    )
    code, output = run_command([sys.executable, "-c", script], 2.0)
    assert code is None
    assert becomes(lambda: is_gone(int(output.split()[0])))


def test_worker_ends_with_its_stage():
    """A killed stage would else leave a worker that hangs, and has the device."""
    script = (
        "import tests.cuda.test_gpu_stages as t;"
        "w = t.Worker(t.STUB);"
        "print(w.run(t.Step('a', 'measured'), {'library': ''}, 20).facts['pid'], flush=True);"
        "w.run(t.Step('b', 'hang'), {'library': ''}, 600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as stage:
        pid = int(stage.stdout.readline())
        assert not is_gone(pid)
        stage.kill()
    assert becomes(lambda: is_gone(pid))


def becomes(holds: Callable[[], bool]) -> bool:
    """Wait until something holds, for some seconds at most."""
    for _ in range(50):
        if holds():
            return True
        time.sleep(0.1)
    return False


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


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
def test_compiler_errors_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_tool(tmp_path / "nvcc", "echo 'error: no such thing'; exit 2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tests.gpu.build.BUILDS", tmp_path / "build")
    monkeypatch.setattr("tests.gpu.build.find_spec", lambda _: None)  # Triton, which takes seconds
    with pytest.raises(BuildFailed, match="error: no such thing"):
        build(90)


@pytest.mark.parametrize("fault", ["from triton import knobs", "raise SystemExit('no assembler')"])
def test_triton_that_does_not_compile_costs_its_kernels_alone(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").touch()  # older than 3.4: it has no knobs
    (tmp_path / "compile.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tests.gpu.build._TRITON_SOURCES", tmp_path)
    code, reason = triton_code(tmp_path, "content")
    assert code.name == "triton_code_none.cu"
    assert ("knobs" if "knobs" in fault else "no assembler") in reason


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


def test_profile_is_kept_where_all_results_are(tools: Tools, tmp_path: Path):
    find = 'for a; do case "$a" in --log-file=*) f="${a#--log-file=}";; esac; done; '
    write_tool(tmp_path / "ncu", find + 'echo "$@" >"$f"')
    arguments: dict[str, object] = {"kernel": "attend", "program": ["attention", "--small"]}
    assert tools.run("profile", 20, arguments) == {"file": "ncu-attend.csv"}
    given = (tmp_path / "ncu-attend.csv").read_text()
    assert "--kernel-name=regex:(^|::)attend$ " in given
    assert "--clock-control=none" in given
    write_tool(tmp_path / "ncu", "echo 'no permission to read counters'")
    with pytest.raises(RuntimeError, match="ncu has not profiled 'attend'"):
        tools.run("profile", 20, arguments)


@nightly
def test_profiler_that_hangs_is_killed(tools: Tools, tmp_path: Path):
    write_tool(tmp_path / "ncu", "sleep 100")
    with pytest.raises(TimedOut):
        tools.run("profile", 0.5, {"kernel": "attend", "program": ["attention"]})


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
