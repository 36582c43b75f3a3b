"""Everything that needs a GPU, in one command:

    make test-gpu            or, with torch and numpy in another Python: python3 -m tests.gpu

builds the kernels for the card, runs every contract case in every tactic against float64, records
the primitives, runs compute-sanitizer, measures attention against torch's dense attention, and
writes one JSON with the card, the driver and the clocks. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from tests.cuda import abi
from tests.gpu import correctness, machine, primitives, sanitizer, timings
from tests.gpu.build import BUILDS, build
from tests.gpu.stored_cases import CASES, read_cases

_HINT = "`python -m tests.gpu.prepare` writes it, where moh-deploy is installed; bring it along."


def main() -> int:
    options = _parser().parse_args()
    if not torch.cuda.is_available():
        return _fail(f"torch {torch.__version__} finds no GPU.")
    if not CASES.is_file():
        return _fail(f"{CASES} is missing. {_HINT}")
    major, minor = torch.cuda.get_device_capability()
    library = ctypes.CDLL(str(build(10 * major + minor)))
    abi.declare(library)
    cases = list(islice(read_cases(), 0, None, options.every))
    problems = list(correctness.find_problems(library, cases))
    print(f"{len(cases)} cases, {len(problems)} problems", *problems, sep="\n", flush=True)
    if options.only_cases:
        return 1 if problems else 0
    report = {"machine": machine.describe(), "cases": len(cases), "problems": problems}
    report["primitives"] = primitives.record(library)
    report["timings"] = _times(library, options.repeats)
    report["clocks_after"] = machine.clocks()
    report["sanitizer"] = sanitizer.check()
    report["written"] = time.strftime("%Y-%m-%d %H:%M:%S")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")
    dirty = [tool for tool, verdict in report["sanitizer"].items() if verdict != "clean"]
    return 1 if problems or dirty else 0


def _times(library: ctypes.CDLL, repeats: int) -> list[dict[str, object]]:
    rows = []
    for row in timings.rows(library, repeats=repeats):
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--output", type=Path, default=BUILDS / "results.json")
    parser.add_argument("--repeats", type=int, default=50, help="of each timing")
    parser.add_argument("--every", type=int, default=1, help="run every Nth case only")
    parser.add_argument("--only-cases", action="store_true", help="nothing but the cases")
    return parser


def _fail(reason: str) -> int:
    print(f"nothing was tested: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
