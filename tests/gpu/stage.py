"""Runs a stage: its steps in order, within a budget, each result in the report before the next."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
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
        tools = Tools(library, options.device, options.cases, options.out)
        common: Facts = {"library": str(library)}

        def run(step: Step, timeout_s: float) -> Result:
            if step.job not in TOOLS:
                return worker.run(step, common, timeout_s)
            # A tool does not share the device with an idle worker: what it measures would be
            # disturbed.
            worker.close()
            began = time.monotonic()
            status, problem, facts = _outcome(tools, step, timeout_s)
            return Result(step.name, status, time.monotonic() - began, problem, facts)

        run_steps(others, report, options.budget_s, run)
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


def run_steps(
    steps: Sequence[Step], report: Report, budget_s: float, run: Callable[[Step, float], Result]
) -> None:
    """Run steps in order; what does not fit into the budget, or hangs as others did, is cut.

    Args:
        run: Runs a step, within that many seconds.
    """
    start = time.monotonic()
    ended: Counter[str] = Counter()
    hung: Counter[str] = Counter()
    for step in steps:
        left = budget_s - (time.monotonic() - start)
        problem = ""
        if step.expected_s > left:
            problem = f"it takes {step.expected_s:g} s; {left:.1f} left"
        elif ended[step.kind] >= MOST_ENDED_WORKERS:
            problem = f"{ended[step.kind]} processes have ended in a {step.kind}"
        elif hung[step.kind] >= MOST_HUNG:
            problem = f"{hung[step.kind]} steps of {step.kind} have hung"
        if problem:
            result = Result(step.name, "cut", problem=problem)
        else:
            result = run(step, min(step.timeout_s, left + GRACE_S))
        ended[step.kind] += result.ended_worker
        hung[step.kind] += result.status == "hung"
        report.add(result)


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
