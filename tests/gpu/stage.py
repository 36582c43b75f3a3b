"""Runs a stage: its steps in order, within a budget, each result in the report before the next."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.gpu.build import BuildFailed, build
from tests.gpu.isolated import Worker
from tests.gpu.plan import GRACE_S
from tests.gpu.report import Report
from tests.gpu.steps import GOOD, Facts, Missing, Result, Status, Step, Wrong
from tests.gpu.tools import TOOLS, TimedOut, Tools

MOST_ENDED_WORKERS = 4
MOST_HUNG = 2
"""Of one kind of step; then the others of this kind are cut, and there is time for the rest."""


class NothingTested(Exception):
    """A stage that could not start: the text says why, and what to do."""


@dataclass(frozen=True)
class Options:
    """How a stage runs.

    Attributes:
        library: Kernels that were built before; None: they are built for the card.
        device: Name of `tests.gpu.device.DEVICES`.
        cases: The file of stored cases.
        out: Folder of all results.
        worker: Command of the process that touches the device.
        budget_s: From the end of the build; no step begins that is not expected to end within it.
    """

    library: Path | None
    device: str
    cases: Path
    out: Path
    worker: Sequence[str]
    budget_s: float


def run_stage(steps: Sequence[Step], report: Report, options: Options) -> None:
    """Run steps, of which the first one describes the machine.

    Raises:
        NothingTested: There is no GPU, or no library for it.
    """
    start = time.monotonic()
    worker = Worker(options.worker)
    try:
        machine, *others = steps
        described = worker.run(machine, {"library": None}, machine.timeout_s)
        report.note(machine=described.row())
        if described.status != "passed":
            raise NothingTested(described.problem)
        library, without_triton = _library(options, described.facts)
        report.note(library=str(library), build_s=round(time.monotonic() - start, 1))
        if without_triton:
            report.note(without_triton=without_triton)
            print(f"no kernel of Triton: {without_triton}", flush=True)
        _Stage(report, options, library, worker).run(others)
        # Clocks that have fallen meanwhile explain slow timings.
        afterwards = worker.run(machine, {"library": None}, GRACE_S)
        report.note(machine_afterwards=afterwards.row())
    finally:
        worker.close()
        report.note(seconds=round(time.monotonic() - start, 1))


def _library(options: Options, machine: Facts) -> tuple[Path, str]:
    """Return the library, and why it was built without Triton's kernels, if it was."""
    if options.library is None:
        try:
            return build(cast(int, machine["compute_capability"]))
        except BuildFailed as error:
            raise NothingTested(str(error)) from error
    if not options.library.is_file():
        raise NothingTested(f"--library: there is no file {options.library}")
    return options.library.resolve(), ""


class _Stage:
    def __init__(self, report: Report, options: Options, library: Path, worker: Worker) -> None:
        self._report, self._options, self._worker = report, options, worker
        self._common: Facts = {"library": str(library)}
        self._tools = Tools(library, options.device, options.cases, options.out)
        self._start = time.monotonic()
        self._ended: Counter[str] = Counter()
        self._hung: Counter[str] = Counter()

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            result = self._run(step)
            self._ended[step.kind] += result.ended_worker
            self._hung[step.kind] += result.status == "hung"
            self._report.add(result)

    def _run(self, step: Step) -> Result:
        left = self._options.budget_s - (time.monotonic() - self._start)
        if step.expected_s > left:
            return Result(
                step.name, "cut", problem=f"it takes {step.expected_s:g} s; {left:.1f} left"
            )
        if self._ended[step.kind] >= MOST_ENDED_WORKERS:
            problem = f"{self._ended[step.kind]} processes have ended in a {step.kind}"
            return Result(step.name, "cut", problem=problem)
        if self._hung[step.kind] >= MOST_HUNG:
            problem = f"{self._hung[step.kind]} steps of {step.kind} have hung"
            return Result(step.name, "cut", problem=problem)
        timeout_s = min(step.timeout_s, left + GRACE_S)
        if step.job in TOOLS:
            return self._run_tool(step, timeout_s)
        return self._worker.run(step, self._common, timeout_s)

    def _run_tool(self, step: Step, timeout_s: float) -> Result:
        # A tool does not share the device with an idle worker: what it measures would be disturbed.
        self._worker.close()
        start = time.monotonic()
        status, problem, facts = _outcome(self._tools, step, timeout_s)
        return Result(step.name, status, time.monotonic() - start, problem, facts)


def _outcome(tools: Tools, step: Step, timeout_s: float) -> tuple[Status, str, Facts]:
    try:
        return "passed", "", tools.run(step.job, timeout_s, dict(step.arguments))
    except Missing as missing:
        return "missing", str(missing), {}
    except Wrong as wrong:
        return "wrong", str(wrong), wrong.facts
    except TimedOut as late:
        return "hung", str(late), {}
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}", {}


def conclude(report: Report) -> int:
    """Print how a stage ended, and return its exit code: 1 if anything is not as it should be, 2 if
    nothing was tested."""
    counts = Counter(result.status for result in report.results)
    print(", ".join(f"{number} {status}" for status, number in sorted(counts.items())), flush=True)
    bad = [result for result in report.results if result.status not in GOOD]
    for result in bad:
        print(f"{result.step}: {result.status}: {result.problem}", flush=True)
    if report.problem:
        print(report.problem, flush=True)
        return 1
    print(f"written to {report.path}", flush=True)
    if bad:
        return 1
    if not counts["passed"]:
        print("nothing was tested: no step has passed", flush=True)
        return 2
    return 0
