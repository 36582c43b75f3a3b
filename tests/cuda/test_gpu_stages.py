"""A stage of the GPU tests loses one step to whatever goes wrong in it, and nothing else."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda.stage_runs import MACHINE, STUB, run_steps
from tests.gpu.isolated import Worker, run_command
from tests.gpu.report import Report
from tests.gpu.stage import MOST_ENDED_WORKERS, MOST_HUNG, Options, conclude, run_stage
from tests.gpu.steps import Facts, Step
from tests.nightly import nightly


def run(folder: Path, *jobs: str, budget_s: float = 60.0, **options: float) -> dict[str, Facts]:
    """Run a stage of these jobs, a measurement between any two, and read its report."""
    steps = [MACHINE]
    for job in jobs:
        steps += [Step(job, job, timeout_s=20, **options), Step(f"after {job}", "measured")]
    report = run_steps(folder, steps, budget_s)
    return {row["step"]: row for row in json.loads(report.path.read_text())["rows"]}


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


def test_stage_without_time_has_tested_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = run_steps(tmp_path, [MACHINE, Step("a", "measured")], budget_s=0)
    assert [result.status for result in report.results] == ["cut"]
    assert conclude(report) == 2
    assert "nothing was tested: no step has passed" in capsys.readouterr().out


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
        "import resource, tests.cuda.stage_runs as t, pathlib;"
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
        "import tests.cuda.stage_runs as t;"
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
