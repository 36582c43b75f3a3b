"""Runs kernels and nothing around them, for tools that watch a process:

python -m tests.gpu.bare --library FILE cases --every N
python -m tests.gpu.bare --library FILE attention|aggregated
"""

import argparse
import sys
from pathlib import Path

import torch

from tests.gpu import aggregated, workloads
from tests.gpu.attention import KernelCall, Tensors
from tests.gpu.correctness import find_problems
from tests.gpu.device import DEVICES
from tests.gpu.kernels import Bench
from tests.gpu.race import OutputCall
from tests.gpu.stored_cases import CASES

_CALLS = 5
_SHARE = 0.75


def main() -> int:
    options = _parser().parse_args()
    bench = Bench(DEVICES[options.device](), options.cases)
    bench.library_path = options.library
    if options.what == "cases":
        return _cases(bench, options.every)
    sizes = workloads.SMALL if options.small else workloads.FULL
    call = _attention(bench, sizes) if options.what == "attention" else _aggregated(bench, sizes)
    for _ in range(_CALLS):
        call()
    bench.device.synchronize()
    return 0


def _cases(bench: Bench, every: int) -> int:
    problems = 0
    for index, (name, *_) in enumerate(bench.cases.names):
        if index % every == 0:
            for problem in find_problems(bench, bench.cases.case(index), bare=True):
                problems += 1
                print(f"{name}: {problem}", flush=True)
    return 1 if problems else 0


def _attention(bench: Bench, sizes: workloads.Sizes) -> OutputCall:
    tensors = Tensors.draw(sizes.attention[0], _SHARE, torch.float16, 1, bench.device.kind)
    return KernelCall(bench, tensors[0], "sparse")


def _aggregated(bench: Bench, sizes: workloads.Sizes) -> OutputCall:
    drawn = aggregated.draw(sizes.aggregated[0], _SHARE, torch.float16, 0, bench.device.kind)
    return aggregated.KernelCall(bench, drawn[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bare")
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--every", type=int, default=1, help="run every Nth case only")
    parser.add_argument("--small", action="store_true", help="small shapes")
    parser.add_argument("what", choices=["cases", "attention", "aggregated"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
