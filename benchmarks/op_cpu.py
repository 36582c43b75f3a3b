"""MoHAttention on the CPU kernel against what computes every head: ONNX Runtime's decomposed graph,
its fused operators MultiHeadAttention, Attention and GroupQueryAttention, and torch SDPA.

All take turns in one process, on the same inputs, and every output is compared with float64. On one
thread CPU time counts, which neighbours on the machine disturb little; on several, wall time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from fma_peak import NoPeak, Peak, compile_peak
from op_candidates import Bench, Candidate
from op_inputs import DECODE, PREFILL, InputSet, Shape, draw_inputs, parse_shape
from op_rows import Ours, Result, rows_of, table_of
from op_timing import BOUNDS, WrongOutput, measure
from ort_session import Unusable
from printing import environment, print_results, versions
from process_cost import load_average
from run_options import fraction, positive

from moh_deploy import native
from moh_deploy.errors import MoHDeployError
from moh_deploy.runtime.kernel_use import KernelUse, choose_kernels

BUILT = Path(__file__).parents[1] / "build" / "plugins" / native.LIBRARY_NAME
PACKAGES = ("moh-deploy", "onnxruntime", "torch")
SHARES = {"prefill": [1.0, 0.9, 0.75, 0.5], "decode": [1.0, 0.75, 0.5, 0.0]}

# A decoding step runs all of its sets, as layers; three are enough to be no fixed input.
_LAYERS, _SETS = 4, 3
_FEWEST_ROUNDS, _MOST_ROUNDS, _GFLOP_IN_ALL = 7, 41, 60
_WALL_FACTOR = 3  # The minimum of wall times needs more of them than a median.


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    torch.set_num_threads(1)
    start_load = load_average()
    peak = _Peak.of(options.peak)
    try:
        results = _measure_all(options, peak)
    except (WrongOutput, Unusable) as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        "peak of a core": str(peak),
        "library": str(options.kernels[0].library),
        **versions(PACKAGES),
    }
    rows = rows_of(results, peak.gflops)
    tables = (table_of(rows, threads) for threads in options.threads)
    lines = [row.to_json() for row in rows]
    print_results(about, lines, tables, as_json=options.json, width=190)
    return 0


class _Peak:
    """The largest peak that was measured so far, or the one that was given."""

    def __init__(self, given: float | None, measure_peak: Peak | None, source: str) -> None:
        self.gflops = given
        self._measure = measure_peak
        self._source = source

    @staticmethod
    def of(given: float | None) -> _Peak:
        if given is not None:
            return _Peak(given, None, "as given")
        try:
            return _Peak(None, compile_peak(), "float32 multiply-adds, measured in this run")
        except NoPeak as reason:
            return _Peak(None, None, f"{reason}: give --peak")

    def sample(self) -> None:
        if self._measure is not None:
            self.gflops = max(self._measure(), self.gflops or 0.0)

    def __str__(self) -> str:
        figure = "unknown" if self.gflops is None else f"{self.gflops:.1f} GFLOP/s"
        return f"{figure} ({self._source})"


def _measure_all(options: argparse.Namespace, peak: _Peak) -> list[Result]:
    results = []
    for shape in options.shape:
        shares = options.active or SHARES["decode" if shape.is_decode else "prefill"]
        count = _LAYERS if shape.is_decode else _SETS
        sets = [draw_inputs(shape, shares, options.dtype, seed=seed) for seed in range(count)]
        for threads in options.threads:
            print(f"{shape.name}, threads: {threads}", file=sys.stderr)
            peak.sample()
            results.append(_measure_shape(options, shape, threads, sets))
    peak.sample()
    return results


def _measure_shape(
    options: argparse.Namespace, shape: Shape, threads: int, sets: Sequence[InputSet]
) -> Result:
    """Time every candidate at one shape.

    Raises:
        WrongOutput: A candidate computed something else.
        Unusable: The kernel cannot run.
    """
    torch.set_num_threads(threads)
    shares = list(sets[0].gates)
    bench = Bench(shape, options.dtype, threads, sets)
    moh = [(use, item) for use in options.kernels for item in bench.moh(use, shares)]
    dense = list(_dense(bench, shares[0]))
    candidates = [*(item for _, item in moh), *dense]
    timings = measure(bench, candidates, options.rounds or _rounds(shape, threads))
    ours = [
        Ours(use, item.active, _flops(bench, item.active), timing)
        for (use, item), timing in zip(moh, timings, strict=False)
    ]
    dense_timings = zip(dense, timings[len(ours) :], strict=True)
    return Result(
        shape,
        options.dtype,
        threads,
        ours,
        {dense_timing.name: timing for dense_timing, timing in dense_timings},
    )


def _dense(bench: Bench, active: float) -> list[Candidate]:
    tried = (_dense_or_none(bench, name, active) for name in bench.dense_names())
    return [item for item in tried if item is not None]


def _dense_or_none(bench: Bench, name: str, active: float) -> Candidate | None:
    try:
        return bench.dense(name, active)
    except Unusable as reason:
        print(f"  without {name}: {reason}", file=sys.stderr)
        return None


def _flops(bench: Bench, active: float) -> float:
    return mean(bench.shape.flops(item.gates[active]) for item in bench.sets)


def _rounds(shape: Shape, threads: int) -> int:
    """More rounds for what takes less time."""
    gflop = 4e-9 * shape.batch * shape.num_heads * shape.head_dim * shape.visible_keys().sum()
    factor = 1 if threads == 1 else _WALL_FACTOR
    most = factor * _MOST_ROUNDS
    return int(min(max(factor * _GFLOP_IN_ALL / gflop, _FEWEST_ROUNDS), most))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `shape` and `kernels` of the result are what is to be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        named = [parse_shape(text) for text in options.shape or []]
        options.kernels = _kernels(options)
    except (ValueError, MoHDeployError) as error:
        parser.error(str(error))
    options.shape = named or list(DECODE if options.decode else PREFILL)
    return options


def _kernels(options: argparse.Namespace) -> list[KernelUse]:
    """Return what to measure of the library that was given, built here or installed.

    Raises:
        MoHDeployError: It is missing, or cannot do what was asked for.
    """
    built = None if native.kernel_library() or not BUILT.is_file() else BUILT
    library = options.library or built
    both = itertools.product(options.instruction_set or [None], options.compute_type)
    return [
        choose_kernels("require", library=library, instruction_set=name, compute_type=compute_type)
        for name, compute_type in both
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    names = ", ".join(shape.name for shape in (*PREFILL, *DECODE))
    add("--shape", nargs="+", metavar="NAME", help=f"{names}, or B,H,Hkv,N,D[,causal]")
    add("--decode", action="store_true", help="one query on a cache instead of the six prefills")
    add("--active", nargs="+", type=fraction, metavar="F", help="shares of active heads")
    add("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    add("--rounds", type=positive, metavar="N", help="default: 7 to 123, by size")
    add("--dtype", choices=BOUNDS, default="float32", help="of inputs and output")
    add("--instruction-set", nargs="+", metavar="NAME", help="default: the best of this machine")
    add("--compute-type", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    add("--library", type=Path, metavar="FILE", help="default: the installed one, or the built one")
    add("--peak", type=float, metavar="GFLOPS", help="of a core; measured with cc if not given")
    add("--json", action="store_true", help="print a list of rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
