"""Everything that needs a GPU, in stages of a few minutes, each in processes of its own:

    python3 -m tests.gpu --out DIR                    all three, one after the other
    python3 -m tests.gpu --out DIR --stage correct    primitives; contract cases in every tactic
    python3 -m tests.gpu --out DIR --stage speed      timings against what a user would take instead
    python3 -m tests.gpu --out DIR --stage deep       graphs, sanitizers, profiles, the plugin
    python3 -m tests.gpu --plan                       what would run, and how long it should take

It needs torch and numpy, nvcc or a library that was built before, and build/gpu/cases.npz. What a
stage finds is in DIR/STAGE.json after every step, so that nothing is lost whatever happens next.
The exit code is 1 if anything is wrong, 2 if nothing was tested.
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.cuda.golden import GOLDEN
from tests.gpu import plan, workloads
from tests.gpu.build import BUILDS
from tests.gpu.isolated import run_shown
from tests.gpu.plan import (
    BUDGETS_S,
    GRACE_S,
    LIMIT_S,
    MOST_BUILD_S,
    STAGES,
    START_S,
    Ingredients,
)
from tests.gpu.report import Report, plan_lines, timing_lines
from tests.gpu.stage import NothingTested, Options, conclude, run_stage
from tests.gpu.stored_cases import CASES, HINT, OtherVersion, StoredCases


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.rehearse and not options.plan and options.library is None:
        parser.error("--rehearse needs --library FILE, a library of the emulator (make test-cuda)")
    if not options.cases.is_file():
        return _fail(f"{options.cases} is missing: {HINT}")
    try:
        StoredCases(options.cases)
    except OtherVersion as error:
        return _fail(str(error))
    stages = STAGES if options.stage is None else (options.stage,)
    if options.plan:
        for stage in stages:
            steps = plan.steps_of(stage, _ingredients(options))
            print(*plan_lines(stage, steps, _budget(options, stage)), sep="\n")
        return 0
    if options.stage is None:
        return _run_all(options)
    return _run_one(options)


def _run_all(options: argparse.Namespace) -> int:
    """Run each stage in a process, which is killed if it does not end.

    A stage gets less than its budget, or nothing, where the limit of all leaves no more.
    """
    codes = []
    start = time.monotonic()
    for stage in STAGES:
        left_s = options.limit - (time.monotonic() - start) - GRACE_S
        budget_s = min(_budget(options, stage), left_s - START_S)
        if budget_s <= 0:
            print(f"{stage}: no time is left; run it by --stage {stage}", flush=True)
            continue
        command = [sys.executable, "-m", "tests.gpu", *sys.argv[1:]]
        command += [f"--stage={stage}", f"--budget={budget_s:g}"]
        code = run_shown(command, min(budget_s + MOST_BUILD_S, left_s) + GRACE_S)
        print(f"{stage}: {'killed' if code is None else f'exit status {code}'}", flush=True)
        codes.append(1 if code is None else code)
    return 1 if 1 in codes else max(codes)


def _run_one(options: argparse.Namespace) -> int:
    stage, out = options.stage, options.out.resolve()
    if stage == "correct":
        with suppress(OSError):
            (out / GOLDEN.name).unlink()
    steps = plan.steps_of(stage, _ingredients(options))
    budget_s = _budget(options, stage)
    report = Report(
        out / f"{stage}.json",
        {"stage": stage, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "budget_s": budget_s},
    )
    device, cases = "cpu" if options.rehearse else "cuda", options.cases.resolve()
    worker = [
        sys.executable,
        "-m",
        options.worker,
        f"--device={device}",
        f"--cases={cases}",
    ]
    try:
        run_stage(
            steps,
            report,
            Options(options.library, device, cases, out, worker, budget_s),
        )
    except NothingTested as error:
        report.note(nothing_tested=str(error))
        return _fail(str(error))
    print(*timing_lines(report.results), sep="\n", flush=True)
    return conclude(report)


def _ingredients(options: argparse.Namespace) -> Ingredients:
    stored = StoredCases(options.cases)
    plugin = (options.plugin.resolve(), options.harness.resolve())
    return Ingredients(
        sizes=workloads.SMALL if options.rehearse else workloads.FULL,
        cases=stored.names,
        primitives=stored.primitives,
        plugin=plugin if all(path.is_file() for path in plugin) else None,
        out=options.out.resolve(),
        small=options.rehearse,
    )


def _budget(options: argparse.Namespace, stage: str) -> float:
    return BUDGETS_S[stage] if options.budget is None else float(options.budget)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument(
        "--out", type=Path, default=BUILDS / "results", help="folder of the results"
    )
    parser.add_argument("--plan", "--dry-run", action="store_true", help="print it and do nothing")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of a stage, built")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds of all stages"
    )
    parser.add_argument("--library", type=Path, help="kernels that were built before")
    parser.add_argument("--cases", type=Path, default=CASES, help="the stored contract cases")
    parser.add_argument("--plugin", type=Path, default=BUILDS / "libmoh_plugin.so")
    parser.add_argument("--harness", type=Path, default=BUILDS / "libmoh_harness.so")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="small shapes on the CPU: --library is one of the emulator",
    )
    parser.add_argument("--worker", default="tests.gpu.worker", help=argparse.SUPPRESS)
    return parser


def _fail(reason: str) -> int:
    print(f"nothing was tested: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
