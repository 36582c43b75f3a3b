"""Runs cases of attention by Triton's kernel in Triton's interpreter, and compares each.

    TRITON_INTERPRET=1 python -m tests.cuda.triton.run_cases LIBRARY --sets contract tiles ...

In a process of its own: Triton decides when it is imported whether it interprets. Prints what is
wrong; the exit code is 1 if anything is.
"""

import argparse
import re
import sys
from contextlib import nullcontext
from itertools import islice, product
from pathlib import Path

from tests.cuda.abi import TACTICS
from tests.cuda.far_apart import far_apart
from tests.cuda.libraries import Emulator
from tests.cuda.triton import cases
from tests.cuda.triton.codes import SOURCES, load
from tests.cuda.triton.interpreted import InterpretedTriton

SETS = {
    "contract": cases.contract_cases,
    "tiles": cases.tile_cases,
    "drawn": cases.drawn_cases_taken,
}


def main() -> int:
    options = _parser().parse_args()
    module = load(options.kernel)
    interpreted = InterpretedTriton(
        Emulator(options.library), module, architecture=options.architecture
    )
    chosen = [
        case for name, dtype in product(options.sets, options.dtypes) for case in SETS[name](dtype)
    ]
    chosen = [case for case in chosen if re.search(options.match, str(case))]
    runs = [(case, tactic) for case in chosen for tactic in options.tactics]
    problems = 0
    for case, tactic in islice(runs, 0, None, options.every):
        place = far_apart if options.far_apart else nullcontext
        problem = interpreted.find_mismatch(case, tactic, place)
        if problem is not None:
            problems += 1
            print(f"{tactic}: {problem}")
            if options.stop:
                return 1
    print(f"{len(interpreted.launches)} launches, {problems} problems")
    return 1 if problems or not interpreted.launches else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.triton.run_cases")
    parser.add_argument("library", type=Path, help="the emulated one")
    parser.add_argument("--kernel", type=Path, default=SOURCES / "attention.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=cases.DTYPES)
    parser.add_argument("--tactics", nargs="+", choices=TACTICS, default=list(TACTICS))
    parser.add_argument("--architecture", type=int, default=90)
    parser.add_argument("--match", default="", help="cases whose name has this regular expression")
    parser.add_argument("--every", type=int, default=1, help="run every Nth case and tactic only")
    parser.add_argument("--far-apart", action="store_true", help="tokens of an attention")
    parser.add_argument("--stop", action="store_true", help="at the first problem")
    return parser


if __name__ == "__main__":
    sys.exit(main())
