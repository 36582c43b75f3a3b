"""Runs many cases on an emulated library and compares each with the reference.

    python -m tests.cuda.run_cases LIBRARY [--match REGEX] [--seeds 0 1] [--late-copies 0 1] ...

In a process of its own, so that a sanitizer can watch it, and so that a broken kernel breaks
nothing else. Prints what is wrong; the exit code is 1 if anything is.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from moh_deploy.ops.cases import Case
from tests.cuda.drawn import cases_of_several_tiles, drawn_cases
from tests.cuda.far_apart import far_apart
from tests.cuda.kernels import CHOSEN, Kernels, plans_of
from tests.cuda.libraries import Emulator
from tests.ops.cases import OP_CASES

CUDA_OPS = ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")


def main() -> int:
    arguments = _parser().parse_args()
    emulator = Emulator(arguments.library)
    kernels = Kernels(
        emulator.library,
        guards=not arguments.no_guards,
        place=far_apart if arguments.far_apart else nullcontext,
    )
    runs = problems = 0
    for case in _cases(arguments):
        plans = (CHOSEN,) if arguments.chosen_plan else plans_of(case)
        for plan, seed, late in itertools.product(plans, arguments.seeds, arguments.late_copies):
            emulator.configure(seed=seed, late_copies=late, unwritten=arguments.unwritten)
            problem = kernels.find_mismatch(case, plan) or _conflicts(emulator)
            runs += 1
            if problem:
                problems += 1
                print(f"{case}: plan {plan}, seed {seed}, late copies {late}: {problem}")
                if arguments.stop:
                    return 1
    print(f"{runs} runs, {problems} problems")
    return 1 if problems or not runs else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.run_cases")
    parser.add_argument("library", type=Path)
    parser.add_argument("--match", default="", help="cases whose name has this regular expression")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--late-copies", type=int, nargs="+", default=[0], choices=[0, 1])
    parser.add_argument("--unwritten", type=int, default=0xFF, help="byte of shared memory")
    parser.add_argument("--draws", type=int, default=0, help="drawn cases of each op, besides")
    parser.add_argument("--tiles", action="store_true", help="attention of several tiles, besides")
    parser.add_argument("--chosen-plan", action="store_true", help="not every tactic and split")
    parser.add_argument("--no-guards", action="store_true", help="tensors end where memory does")
    parser.add_argument("--far-apart", action="store_true", help="tokens of an attention")
    parser.add_argument("--stop", action="store_true", help="at the first problem")
    return parser


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for op in CUDA_OPS:
        drawn = drawn_cases(op, arguments.draws) if arguments.draws else ()
        tiles = cases_of_several_tiles() if arguments.tiles and op == "MoHAttention" else ()
        for case in (*OP_CASES[op], *tiles, *drawn):
            if re.search(arguments.match, str(case)):
                yield case


def _conflicts(emulator: Emulator) -> str | None:
    conflicts = emulator.counts().matrix_load_conflicts
    return f"{conflicts} bank conflicts of matrix loads" if conflicts else None


if __name__ == "__main__":
    sys.exit(main())
