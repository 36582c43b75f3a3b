"""The first run on a card loses one step to whatever goes wrong in it, and says so."""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from moh_deploy.runtime.tensorrt.profiles import covers, make_profiles
from moh_deploy.system.bounded_file import sha256_of
from tests.cuda.stage_runs import write_tool
from tests.cuda.trt import builds
from tests.fakes import Fakes, fakes
from tests.gpu import first_run, first_worker
from tests.gpu.first_run import FirstReport, Planned
from tests.gpu.isolated import ROOT, Worker
from tests.gpu.plan import GRACE_S, LIMIT_S
from tests.gpu.steps import Facts, Step
from tests.handmade_package import MANIFEST, vectors, write_package
from tests.nightly import nightly, sampled
from tests.runtime.tensorrt.engines import MANIFEST as ENGINE
from tests.runtime.tensorrt.engines import python, simulate_gpu, write_engine
from tests.trt_packages import required_rtx

__all__ = ["fakes"]

STUB = (sys.executable, "-m", "tests.cuda.first_run_worker")
NO_GPU = "There is no GPU: no NVIDIA driver."


@dataclass(frozen=True)
class Ran:
    code: int
    content: Facts
    rows: dict[str, Facts]
    page: str


def of(form: str, *, timeout_s: float = 20.0, lines: tuple[str, ...] = ()) -> list[Planned]:
    """Plan export, build, check and time of a model, and the lines that its build prints."""
    names = {job: f"{job}/{form}" for job in ("export", "build", "verify", "time")}
    more = {"build": {"tool_lines": list(lines)}}
    steps = {
        job: Step(name, job, {"form": form, **more.get(job, {})}, 0.1, timeout_s)
        for job, name in names.items()
    }
    found = [
        Planned(steps["export"]),
        Planned(steps["build"], (names["export"],)),
        Planned(steps["verify"], (names["build"], "gpu", "polygraphy")),
        Planned(steps["time"], (names["build"], "gpu")),
    ]
    for line in lines:
        start = " ".join(line.split()[:2])
        step = Step(f"line/{start}", "line", {"build": names["build"], "start": start}, 0.1, 20)
        found.append(Planned(step, (names["build"], start.split()[0])))
    return found


def run(folder: Path, plan: list[Planned], *, rehearse: bool = False, **machine: object) -> Ran:
    options = argparse.Namespace(out=folder / "out", limit=120.0, rehearse=rehearse)
    (options.out / "work").mkdir(parents=True)
    report = FirstReport(options.out / "first-gpu-run.json", {"started": "now"})
    step = Step("machine", "machine", machine, timeout_s=20)
    code = first_run.run(plan, report, Worker(STUB), step, options)
    content = json.loads(report.path.read_text())
    rows = {row["step"]: row for row in content["rows"]}
    return Ran(code, content, rows, report.path.with_suffix(".md").read_text())


def test_everything_that_is_there_is_run(tmp_path: Path):
    ran = run(tmp_path, [*of("llama"), *of("dit")])
    assert {row["status"] for row in ran.rows.values()} == {"passed"}
    assert (ran.code, len(ran.rows)) == (0, 8)
    assert ran.content["machine_afterwards"]["gpu"]["name"] == "NVIDIA L4"
    assert ran.page.startswith("# First run: NVIDIA L4\n\nTensorRT 10.13, moh-deploy 0.1.0\n")
    assert "8 passed" in ran.page
    assert "| dit | 8.1 | 1 kernel | passed | 0.02 | 0.01 |" in ran.page
    assert "dit blocks.0: fastest of 2 timed here: {'kernel': [0.1], 'fused': [0.2]}" in ran.page


@sampled(3)
@pytest.mark.parametrize(
    ("fault", "status", "problem"),
    [
        ("hangs in build", "hung", "no answer after"),
        ("dies in build", "crashed", "its process ended with exit status 7"),
        ("fails in build", "failed", "RuntimeError: TensorRT does not build this"),
    ],
)
def test_build_that_goes_wrong_costs_its_engine_alone(
    tmp_path: Path, fault: str, status: str, problem: str
):
    ran = run(tmp_path, [*of(fault, timeout_s=0.5), *of("dit")])
    broken = ran.rows[f"build/{fault}"]
    assert broken["status"] == status
    assert str(broken["problem"]).startswith(problem)
    needs_it = ran.rows[f"time/{fault}"]
    assert needs_it["status"] == "missing"
    assert needs_it["problem"] == f"It needs build/{fault}, which {status}."
    others = {name: row["status"] for name, row in ran.rows.items() if name.endswith("/dit")}
    assert set(others.values()) == {"passed"}
    assert len(others) == 4
    assert ran.code == 1
    assert f"- build/{fault}: {status}: {problem}" in ran.page


def test_engine_whose_build_was_wrong_is_run_all_the_same(tmp_path: Path):
    ran = run(tmp_path, of("wrong in build"))
    statuses = {name.split("/")[0]: row["status"] for name, row in ran.rows.items()}
    expected = {"export": "passed", "build": "wrong", "verify": "passed", "time": "passed"}
    assert (statuses, ran.code) == (expected, 1)


def test_missing_tool_costs_its_steps(tmp_path: Path):
    why = {"trtexec": "trtexec was not found", "polygraphy": "Polygraphy is not installed"}
    ran = run(tmp_path, of("llama", lines=("trtexec --loadEngine=x", "true --it")), lacks=why)
    missing = {name: row["problem"] for name, row in ran.rows.items() if row["status"] == "missing"}
    assert missing == {
        "verify/llama": why["polygraphy"],
        "line/trtexec --loadEngine=x": why["trtexec"],
    }
    assert ran.rows["line/true --it"]["status"] == "passed"
    assert ran.code == 0
    assert "- Polygraphy is not installed verify/llama\n" in ran.page


@sampled(2)
@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        ({"missing": "torch"}, "ModuleNotFoundError: No module named 'torch'"),
        ({"lacks": {"gpu": NO_GPU}}, NO_GPU),
    ],
)
def test_machine_that_lacks_what_all_steps_need_tests_nothing(
    tmp_path: Path, machine: dict[str, object], problem: str, capsys: pytest.CaptureFixture[str]
):
    ran = run(tmp_path, of("llama"), **machine)
    assert (ran.code, ran.rows, ran.content["nothing_tested"]) == (2, {}, problem)
    assert f"Nothing was tested: {problem}" in ran.page
    assert capsys.readouterr().err == f"nothing was tested: {problem}\n"


def test_rehearsal_leaves_out_what_needs_a_gpu(tmp_path: Path):
    ran = run(tmp_path, of("llama"), rehearse=True, lacks={"gpu": NO_GPU})
    assert {name.split("/")[0]: row["status"] for name, row in ran.rows.items()} == {
        "export": "passed",
        "build": "passed",
        "verify": "missing",
        "time": "missing",
    }
    assert ran.code == 0


# Lines that `build` prints.


def test_line_runs_beside_the_results_and_its_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tools = tmp_path / "tools"
    tools.mkdir()
    said = "GPU Compute Time: min = 0.1 ms, max = 0.4 ms, mean = 0.2 ms, median = 0.25 ms"
    write_tool(tools / "trtexec", f"pwd; env | grep PYTHONPATH; echo '{said}'; touch left")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    line = "trtexec --loadEngine=x"
    row = run(tmp_path, of("llama", lines=(line,))).rows[f"line/{line}"]
    work = tmp_path / "out" / "work"
    assert (row["status"], row["line"], row["gpu_ms"]) == ("passed", line, 0.25)
    assert str(row["output"]).startswith(f"{work}\nPYTHONPATH=/nowhere")
    assert (work / "left").is_file()


@sampled(2)
@pytest.mark.parametrize(
    ("script", "status", "problem"),
    [
        ("echo 'Could not load'; echo; exit 3", "failed", "exit status 3: Could not load"),
        ("sleep 100", "hung", "killed after 0.5 s"),
    ],
)
def test_line_that_fails_costs_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, status: str, problem: str
):
    write_tool(tmp_path / "trtexec", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    *plan, line = of("llama", lines=("trtexec --onnx=x",))
    line = replace(line, step=replace(line.step, timeout_s=0.5 if status == "hung" else 20))
    row = run(tmp_path, [*plan, line, *of("dit")]).rows[line.step.name]
    assert (row["status"], row["problem"]) == (status, problem)


def test_line_that_build_does_not_print_is_said(tmp_path: Path):
    *plan, line = of("llama", lines=("true --it",))
    other = replace(line.step, arguments={**line.step.arguments, "start": "polygraphy run"})
    row = run(tmp_path, [*plan, replace(line, step=other)]).rows[line.step.name]
    assert (row["status"], row["problem"]) == ("failed", "build prints no line of polygraphy run")


def test_linker_finds_a_library_by_the_name_that_its_package_lacks(tmp_path: Path):
    library = tmp_path / "libtensorrt_rtx.so.1"
    library.touch()
    line = "LD_LIBRARY_PATH=/site-packages sh -c 'ls $LD_LIBRARY_PATH'"
    step = Step("line/ls", "line", {"line": line}, 0.1, 20)
    found = {"library_to_name": [str(library), "libtensorrt_rtx.so"]}
    row = run(tmp_path, [Planned(step)], **found).rows["line/ls"]
    assert str(row["output"]).split() == ["libtensorrt_rtx.so", "libtensorrt_rtx.so.1"]


# The plan, profiles, and the worker.


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_plan_is_whole(backend: str):
    plan = list(first_run.planned(backend, None, Path("work"), []))
    names = [item.step.name for item in plan]
    assert len(names) == len(set(names))
    for index, item in enumerate(plan):
        known = {"gpu", "trtexec", "polygraphy", "onnxruntime-cuda", *names[:index]}
        assert set(item.needs) <= known
    assert any("trtexec" in name for name in names) == (backend == "tensorrt")


def test_every_model_and_the_lines_of_one_fit_into_ten_minutes():
    left = LIMIT_S - GRACE_S
    certain = []
    for item in first_run.planned("tensorrt", None, Path("work"), []):
        left -= item.step.expected_s
        certain += [item.step.name] if left >= 0 else []
    kinds = ("build", "verify", "time")
    assert {f"{job}/{form}-float16-kernels" for job in kinds for form in first_run.FORMS} <= set(
        certain
    )
    assert sum(name.startswith("line/") for name in certain) == 4
    assert {"build/llama-float16-fastest", "build/llama-float16-plain"} <= set(certain)


@nightly
def test_each_profile_has_recorded_sizes_of_its_own():
    from tests.gpu.engines import two_profiles

    manifest = replace(MANIFEST, dims={"batch": 4, "seq": 12}, dim_ranges={"seq": (2, 13)})
    texts = two_profiles(manifest)
    assert texts == ["batch=1..4..4,seq=2..12..12", "batch=1..5..16,seq=2..13..13"]
    small, large = make_profiles(texts, manifest)
    example, larger = {"batch": 4, "seq": 12}, {"batch": 5, "seq": 13}
    assert covers(small, example)
    assert covers(large, larger)
    assert not covers(small, larger)


@sampled(2)
@pytest.mark.parametrize(
    ("code", "said"),
    [("return 700;", "the GPU does not recover: CUDA error 700"), ("return 201;", "")],
)
def test_gpu_that_does_not_recover_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
):
    source = tmp_path / "driver.c"
    source.write_text(f"int cuCtxSynchronize(void) {{ {code} }}")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    load = ctypes.CDLL
    monkeypatch.setattr(first_worker.ctypes, "CDLL", lambda name: load(str(tmp_path / name)))
    assert first_worker.is_healthy() == said


@nightly
@pytest.mark.parametrize(("scale", "is_right"), [(1.0, True), (1.5, False)])
def test_jobs_compare_and_time_an_engine(
    fakes: Fakes, tmp_path: Path, scale: float, is_right: bool
):
    """On a runtime that stands in for TensorRT's; both profiles are run."""
    pytest.importorskip("polygraphy")
    simulate_gpu(fakes)
    (fakes.folder / "libcuda.so.1").unlink()
    (fakes.folder / "libcuda.so.1").symlink_to(builds.build("driver", [builds.HERE / "driver.cc"]))
    sets = (vectors(with_layer=False), vectors(batch=8, seq=20, with_layer=False))
    package = write_package(tmp_path / "package", with_layer=False, sets=sets)
    sha256 = sha256_of(package.root / "manifest.json")
    manifest = replace(ENGINE, layers=(), package_sha256=sha256)
    engine = write_engine(tmp_path / "engine", manifest, scale=scale)
    code = """
import json, sys
from tests.gpu import engines
from tests.gpu.steps import Wrong
try:
    verified = engines.verify(*sys.argv[1:])
except Wrong as wrong:
    verified = {"wrong": str(wrong)}
print(json.dumps([verified, engines.time(*sys.argv[1:])]))
"""
    ran = python(code, engine, package.root)
    assert ran.returncode == 0, ran.stderr
    verified, timed = json.loads(ran.stdout.splitlines()[-1])
    if is_right:
        assert verified == {"runs": 2, "max_abs_error": 0.0}
    else:
        assert "'y' of vectors 1 (batch=8, seq=20) differs" in verified["wrong"]
    assert [row["sizes"] for row in timed["times"]] == [run.sizes for run in sets]
    assert all({"events_ms", "graph_ms"} < row.keys() for row in timed["times"])


def script(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "first_gpu_run.py"), f"--out={out}", *options],
        cwd=out.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_script_runs_what_is_installed_and_says_what_is_missing(tmp_path: Path):
    """Here the installed moh-deploy is a file without anything."""
    (tmp_path / "moh_deploy.py").touch()
    (tmp_path / "tensorrt_rtx.py").touch()
    (tmp_path / "torch.py").touch()
    ran = script(tmp_path / "out", "--backend=tensorrt-rtx", PYTHONPATH=str(tmp_path))
    assert ran.returncode == 2, ran.stderr
    content = json.loads((tmp_path / "out" / "first-gpu-run.json").read_text())
    assert f"from 'moh_deploy' ({tmp_path / 'moh_deploy.py'})" in content["nothing_tested"]


@nightly
def test_rehearsal_builds_all_engines_and_runs_the_printed_lines(tmp_path: Path):
    required_rtx()
    pytest.importorskip("polygraphy")
    plugin = tmp_path / "libmoh_plugin.so"
    shutil.copy(builds.plugin_on_fakes(), plugin)
    register = builds.PLUGINS / "cuda" / "registered" / "register.cc"
    shutil.copy(builds.build("register", [register]), tmp_path / "libmoh_plugin_registered.so")
    # A machine with a GPU need not have what the tests are run by.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "pytest.py").write_text("raise ImportError('there is no pytest')")
    path = [str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]
    ran = script(
        tmp_path / "out",
        "--rehearse",
        f"--plugin={plugin}",
        "--limit=1500",
        PYTHONPATH=os.pathsep.join(filter(None, path)),
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    content = json.loads((tmp_path / "out" / "first-gpu-run.json").read_text())
    by_status: dict[str, set[str]] = {}
    for row in content["rows"]:
        by_status.setdefault(row["status"], set()).add(row["step"].split("/")[0])
    assert by_status["passed"] == {"export", "build", "line"}
    assert by_status["missing"] == {"verify", "time", "line", "onnxruntime", "comparator"}
    for form in first_run.FORMS:
        (row,) = [r for r in content["rows"] if r["step"] == f"build/{form}-float16-kernels"]
        assert {layer["attention"] for layer in row["layers"]} == {"kernel"}
