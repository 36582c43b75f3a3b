"""The first run on a card with real TensorRT: `python3 tools/first_gpu_run.py`.

Of four small models it builds engines, compares them with the original models, times them, and runs
the lines of trtexec and Polygraphy that `moh-deploy build` prints. It installs nothing. Whatever
goes wrong costs one step; the JSON file and the page are whole after every step.
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

from tests.gpu.first_page import page
from tests.gpu.first_worker import TRTEXEC_FOLDERS
from tests.gpu.isolated import ROOT, Worker, run_command
from tests.gpu.plan import GRACE_S, LIMIT_S
from tests.gpu.report import Report, write_whole
from tests.gpu.stage import conclude, run_steps
from tests.gpu.steps import Facts, Result, Step

FORMS = ("llama", "dit", "digits", "vit")
_FIRST, *_OTHERS = FORMS
_RUN_LINES, _BUILD_LINES = (
    ("trtexec --loadEngine", "polygraphy run"),
    ("trtexec --onnx", "polygraphy convert"),
)
_MACHINE = Step("machine", "machine", timeout_s=120)
# A machine without a GPU is slower, too.
_REHEARSAL_S = 6.0
_GPU_TIME = re.compile(r"GPU Compute Time: .*median = ([\d.]+) ms")
_KEPT = 1500


@dataclass(frozen=True)
class Planned:
    """A step, and what it needs.

    Attributes:
        needs: Keys of the machine's `lacks`, or names of earlier steps.
    """

    step: Step
    needs: tuple[str, ...] = ()


def planned(backend: str, plugin: str | None, work: Path, targets: list[str]) -> Iterator[Planned]:
    """Yield the steps, the most valuable ones first."""
    common = {"backend": backend, "plugin": plugin, "targets": targets}
    for form in FORMS:
        arguments = {"form": form, "folder": str(work / form)}
        yield Planned(Step(f"export/{form}", "export", arguments, 15, timeout_s=120))
        yield from _engine(form, "float16", "kernels", work, common)
    yield from _lines(_FIRST, backend, (*_RUN_LINES, *_BUILD_LINES))
    for form in FORMS:
        step = Step(f"onnxruntime/{form}", "on_onnxruntime", _package(form, work), 8, timeout_s=60)
        yield Planned(step, (f"export/{form}", "gpu", "onnxruntime-cuda"))
    for form, ways in product(FORMS, ("fastest", "plain")):
        yield from _engine(form, "float16", ways, work, common)
    for form in _OTHERS:
        yield from _lines(form, backend, _RUN_LINES)
    for precision, form in product(("float32", "bfloat16"), FORMS):
        yield from _engine(form, precision, "kernels", work, common)
        if precision == "float32":
            yield _comparator(form, work)
    for form in _OTHERS:
        yield from _lines(form, backend, _BUILD_LINES)


def _package(form: str, work: Path) -> dict[str, str]:
    return {"package": str(work / form / "package")}


def _engine(
    form: str, precision: str, ways: str, work: Path, common: Mapping[str, object]
) -> Iterator[Planned]:
    name = f"{form}-{precision}-{ways}"
    both = {**_package(form, work), "engine": str(work / form / f"{precision}-{ways}")}
    asked = {"form": form, "precision": precision, "ways": ways}
    build = Step(f"build/{name}", "build", {**both, **asked, **common}, 30, timeout_s=150)
    yield Planned(build, (f"export/{form}",))
    verify = Step(f"verify/{name}", "verify", both, 6, timeout_s=60)
    yield Planned(verify, (build.name, "gpu", "polygraphy"))
    yield Planned(Step(f"time/{name}", "time", both, 4, timeout_s=60), (build.name, "gpu"))


def _lines(form: str, backend: str, starts: tuple[str, ...]) -> Iterator[Planned]:
    build = f"build/{form}-float16-kernels"
    for start in starts:
        program, action = start.split()
        if program == "trtexec" and backend != "tensorrt":
            continue
        is_run = start in _RUN_LINES
        arguments = {"build": build, "start": start}
        step = Step(f"line/{program} {action}/{form}", "line", arguments, 12 if is_run else 30, 120)
        yield Planned(step, (build, program, *(["gpu"] if is_run else [])))


def _comparator(form: str, work: Path) -> Planned:
    """Polygraphy's Comparator, with the recorded outputs of PyTorch; by elements, so in float32."""
    engine, package = work / form / "float32-kernels", work / form / "package"
    words = [sys.executable, str(ROOT / "examples" / "in_polygraphy.py"), str(engine), str(package)]
    step = Step(f"comparator/{form}", "line", {"line": shlex.join(words)}, 10, timeout_s=60)
    return Planned(step, (f"build/{form}-float32-kernels", "gpu", "polygraphy"))


class _Run:
    """Runs a step: a job of the worker, or a line of a shell."""

    def __init__(self, plan: list[Planned], machine: Facts, worker: Worker, work: Path) -> None:
        self._needs = {item.step.name: item.needs for item in plan}
        self._lacks = cast(dict[str, str], machine["lacks"])
        self._worker, self._work = worker, work
        self._results: dict[str, Result] = {}
        folders = [str(Path(sys.executable).parent), os.environ["PATH"], *TRTEXEC_FOLDERS]
        self._environment = [f"PATH={os.pathsep.join(folders)}"]
        home = os.pathsep.join(filter(None, [str(machine["home"]), os.environ.get("PYTHONPATH")]))
        self._environment.append(f"PYTHONPATH={home}")
        self._libraries = _linked(machine, work / "libraries")

    def __call__(self, step: Step, timeout_s: float) -> Result:
        why = self._why_not(step)
        if why:
            result = Result(step.name, "missing", problem=why)
        elif step.job == "line":
            result = self._line(step, timeout_s)
        else:
            result = self._worker.run(step, {}, timeout_s)
        self._results[step.name] = result
        return result

    def _why_not(self, step: Step) -> str:
        for need in self._needs[step.name]:
            if need in self._lacks:
                return self._lacks[need]
            # What was cut has no result. What is wrong is there all the same.
            found = self._results.get(need)
            if "/" in need and (found is None or found.status not in ("passed", "wrong")):
                return f"It needs {need}, which {'was cut' if found is None else found.status}."
        return ""

    def _line(self, step: Step, timeout_s: float) -> Result:
        given = cast(dict[str, str], step.arguments)
        line = given.get("line") or self._printed(given["build"], given["start"])
        if not line:
            problem = f"build prints no line of {given['start']}"
            return Result(step.name, "failed", problem=problem)
        if self._libraries is not None:
            line = re.sub(r"LD_LIBRARY_PATH=\S+", f"LD_LIBRARY_PATH={self._libraries}", line)
        # It uses the GPU alone, and may leave files where it runs.
        self._worker.close()
        began = time.monotonic()
        command = ["env", "-C", str(self._work), *self._environment, "sh", "-c", line]
        code, output = run_command(command, timeout_s)
        facts: Facts = {"line": line, "output": output[-_KEPT:]}
        if (timed := _GPU_TIME.search(output)) is not None:
            facts["gpu_ms"] = float(timed[1])
        seconds = time.monotonic() - began
        if code is None:
            return Result(step.name, "hung", seconds, f"killed after {timeout_s:g} s", facts)
        problem = f"exit status {code}: {_last_line(output)}" if code else ""
        return Result(step.name, "failed" if code else "passed", seconds, problem, facts)

    def _printed(self, build: str, start: str) -> str:
        lines = cast(list[str], self._results[build].facts["tool_lines"])
        return next((line for line in lines if start in line), "")


def _linked(machine: Facts, folder: Path) -> Path | None:
    """Return a folder where the linker finds TensorRT-RTX by the name that its parser looks for.

    Nothing is changed in the installed package, which lacks that name.
    """
    found = cast(list[str] | None, machine["library_to_name"])
    if found is None:
        return None
    library, name = Path(found[0]), found[1]
    folder.mkdir(parents=True, exist_ok=True)
    for link in (folder / name, folder / library.name):
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return folder


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")


class FirstReport(Report):
    """The JSON file, and beside it a page for people."""

    def _write(self) -> None:
        super()._write()
        text = "\n".join([*page(self.header, self.results), ""])
        self.problem = self.problem or write_whole(self.path.with_suffix(".md"), text.encode())


def run(
    plan: list[Planned], report: Report, worker: Worker, machine: Step, options: argparse.Namespace
) -> int:
    """Run the plan and return the exit code: 1 if anything is wrong, 2 if nothing was tested."""
    began = time.monotonic()
    try:
        described = worker.run(machine, {}, machine.timeout_s)
        report.note(machine=described.row())
        problem = described.problem
        lacks = cast(dict[str, str], described.facts.get("lacks", {}))
        if not (problem or options.rehearse):
            problem = lacks.get("gpu", "")
        if problem:
            report.note(nothing_tested=problem)
            print(f"nothing was tested: {problem}", file=sys.stderr)
            return 2
        budget_s = options.limit - GRACE_S - (time.monotonic() - began)
        each = _Run(plan, described.facts, worker, options.out / "work")
        run_steps([item.step for item in plan], report, budget_s, each)
        # Clocks that have fallen meanwhile explain slow timings.
        report.note(machine_afterwards=worker.run(machine, {}, GRACE_S).row())
    finally:
        worker.close()
        report.note(seconds=round(time.monotonic() - began, 1))
    return conclude(report)


def main(script: Path) -> int:
    """Run what the command line asks for.

    Args:
        script: With `--serve` it is the worker.
    """
    options = _parser().parse_args()
    options.out = options.out.resolve()
    backend = "tensorrt-rtx" if options.rehearse else options.backend
    plugin = None if options.plugin is None else str(options.plugin.resolve())
    (options.out / "work").mkdir(parents=True, exist_ok=True)
    targets = ["8.9"] if options.rehearse else []
    plan = list(planned(backend, plugin, options.out / "work", targets))
    machine = replace(_MACHINE, arguments={"backend": backend, "plugin": plugin})
    if options.rehearse:
        plan = [
            replace(item, step=replace(item.step, timeout_s=_REHEARSAL_S * item.step.timeout_s))
            for item in plan
        ]
    header: Facts = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "limit_s": options.limit}
    report = FirstReport(options.out / "first-gpu-run.json", header)
    worker = Worker([sys.executable, str(script), "--serve"])
    return run(plan, report, worker, machine, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="first_gpu_run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("first-gpu-run"), help="results' folder")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="seconds of all")
    parser.add_argument("--backend", default="tensorrt", choices=["tensorrt", "tensorrt-rtx"])
    parser.add_argument("--plugin", type=Path, help="a plugin library other than the package's")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="without a GPU: engines are built by TensorRT-RTX, and what needs a GPU is left out",
    )
    return parser
