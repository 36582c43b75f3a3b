"""NVIDIA's tools are called as documented; a tool that fails, hangs or is missing is one step."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cuda.stage_runs import MACHINE, run_steps, write_tool
from tests.gpu.stage import conclude
from tests.gpu.steps import Step
from tests.gpu.tools import TimedOut, Tools
from tests.nightly import nightly, sampled


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
