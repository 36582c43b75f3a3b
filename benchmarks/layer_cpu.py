"""One MoH layer on the CPU, from its input to its output, against the dense layer in ONNX Runtime:
one MatMul for queries, keys and values, the fastest fused attention, one MatMul for the output.

Ours computes the gates, by linear maps of the input (of the query's length in the LLaMA forms);
the dense layer is given them, and multiplies every head with its gate. All take turns in one
process, on the same inputs, and every output is compared with float64. On one thread CPU time
counts, on several wall time.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime as ort
from interleaving import Call, interleaved_figures
from layer_models import (
    LAYERS,
    Layer,
    Weights,
    choice_of,
    dense_models,
    draw_weights,
    float64_output,
    moh_model,
)
from op_timing import WrongOutput, check_error
from ort_session import Unusable, kernel_session, plain_session
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import add_run_options, kernels_or_exit

from moh_deploy.errors import MoHDeployError
from moh_deploy.runtime.kernel_use import KernelUse, require_kernels
from moh_deploy.runtime.onnxruntime.values import to_ort
from moh_deploy.system.npz import Array

PACKAGES = ("moh-deploy", "onnxruntime")
SHARES = [1.0, 0.9, 0.75, 0.5]
# Largest |output - float64|, where outputs are of order 1.
BOUND = 2e-5


@dataclass(frozen=True)
class Row:
    """One layer at one share of active heads.

    Attributes:
        active: Share of heads that a token uses: the one nearest to what was asked for.
        moh_ms: Sparse attention and, where the router allows it, sparse projections. CPU time,
            median, on one thread; wall time, minimum, on several.
        attention_only_ms: The same layer with projections by MatMul.
        dense_ms: The dense layer around the fastest fused attention.
        dense: What that is.
        ratio: `dense_ms / moh_ms`; above 1 ours is faster.
        max_abs_error: Of ours, against float64.
    """

    layer: str
    active: float
    threads: int
    moh_ms: float
    attention_only_ms: float
    dense_ms: float
    dense: str
    ratio: float
    max_abs_error: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = [
            row
            for layer in options.layers
            for threads in options.threads
            for row in _measure_layer(layer, threads, options)
        ]
    except (MoHDeployError, Unusable, WrongOutput) as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        "kernels": options.kernels.describe(),
        **versions(PACKAGES),
    }
    lines = [asdict(row) for row in rows]
    print_results(about, lines, [_table(rows)], as_json=options.json, width=130)
    return 0


def _measure_layer(layer: Layer, threads: int, options: argparse.Namespace) -> list[Row]:
    print(f"{layer.name}, threads: {threads}", file=sys.stderr)
    rng = np.random.default_rng(0)
    weights = draw_weights(layer, rng)
    x = rng.standard_normal(layer.x_shape, dtype=np.float32)
    dense = {
        name: plain_session(model.SerializeToString(), threads=threads)
        for name, model in dense_models(layer, weights).items()
    }
    contest = _Contest(layer, weights, x, dense, threads, options.kernels, options.rounds)
    return [contest.row(share) for share in options.active]


@dataclass(frozen=True)
class _Contest:
    """What all shares of active heads of one layer have in common."""

    layer: Layer
    weights: Weights
    x: Array
    dense: dict[str, ort.InferenceSession]
    threads: int
    kernel: KernelUse
    rounds: int

    def row(self, share: float) -> Row:
        """Measure one share of active heads.

        Raises:
            Unusable: ONNX Runtime refuses our layer.
            MoHDeployError: A node of it would not run on a kernel.
            WrongOutput: An output differs from the float64 result.
        """
        choice = choice_of(self.layer, share)
        ours = [
            self._ours(moh_model(self.layer, self.weights, choice, sparse_projections=sparse))
            for sparse in (True, False)
        ]
        output, gates = ours[0].run(None, {"X": self.x})
        expected = float64_output(self.layer, self.weights, self.x, gates)
        error = _error("moh", output, expected)
        _error("moh, attention only", ours[1].run(["Y"], {"X": self.x})[0], expected)
        feeds = {"X": self.x, "gates": gates}
        for name, session in self.dense.items():
            _error(name, session.run(None, feeds)[0], expected)
        calls = [_call(node, {"X": self.x}) for node in ours]
        calls += [_call(item, feeds) for item in self.dense.values()]
        moh_ms, attention_only_ms, *dense_ms = interleaved_figures(
            calls, threads=self.threads, rounds=self.rounds
        )
        best, best_ms = min(zip(self.dense, dense_ms, strict=True), key=lambda item: item[1])
        return Row(
            layer=self.layer.name,
            active=choice.active / self.layer.shape.num_heads,
            threads=self.threads,
            moh_ms=moh_ms,
            attention_only_ms=attention_only_ms,
            dense_ms=best_ms,
            dense=best,
            ratio=best_ms / moh_ms,
            max_abs_error=error,
        )

    def _ours(self, model: onnx.ModelProto) -> ort.InferenceSession:
        nodes = [node.name for node in model.graph.node if node.domain == "moh"]
        content = model.SerializeToString()
        session, impl = kernel_session(content, nodes, self.kernel, threads=self.threads)
        require_kernels(self.kernel, impl)
        return session


def _error(who: str, output: Array, expected: Array) -> float:
    error = float(np.abs(output - expected).max())
    return check_error(who, error, BOUND)


def _call(session: ort.InferenceSession, feeds: dict[str, Array]) -> Call:
    values = {name: to_ort(array) for name, array in feeds.items()}
    return lambda: session.run_with_ort_values(["Y"], values)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        title="CPU time on one thread (medians), wall time on several (minima), ms a run",
        title_justify="left",
    )
    for heading in ("layer", "threads", "active", "moh", "attention only", "dense", "dense/moh"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("error", justify="right")
    table.add_column("dense is")
    for row in rows:
        times = (row.moh_ms, row.attention_only_ms, row.dense_ms)
        table.add_row(
            row.layer,
            str(row.threads),
            f"{row.active:.3g}",
            *(f"{ms:.4g}" for ms in times),
            f"{row.ratio:.2f}",
            f"{row.max_abs_error:.1e}",
            row.dense,
        )
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    named = {layer.name: layer for layer in LAYERS}
    options.layers = [named[name] for name in options.layers]
    options.kernels = kernels_or_exit(parser, "require", options.library)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    names = [layer.name for layer in LAYERS]
    add("--layers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--active", nargs="+", type=_share, default=SHARES, metavar="F", help="active heads")
    add_run_options(parser, threads=[1, 2], rounds=11)
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; expected above 0, at most 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
