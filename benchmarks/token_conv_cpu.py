"""MoHTokenConv on the CPU kernel against what a model has without it in ONNX Runtime: the bias of
the product before, Transposes, Conv, gelu and the product with the gates (its function body).

Both take turns in one process, on the same inputs, and the outputs are compared. On one thread CPU
time counts, on several wall time. A ratio above 1 is a gain.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from interleaving import Call, interleaved_figures
from op_timing import WrongOutput, check_error
from ort_session import Unusable, kernel_session, plain_session
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import add_run_options, kernels_or_exit

from moh_deploy.errors import MoHDeployError
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType
from moh_deploy.runtime.kernel_use import require_kernels
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort

PACKAGES = ("moh-deploy", "onnxruntime")
# Largest difference between both sides, where outputs are of order 1.
BOUND = 3e-5


@dataclass(frozen=True)
class Shape:
    """A convolution with a kernel of 3 x 3 and a bias."""

    name: str
    batch: int
    side: int
    channels: int
    gated: bool  # with gelu, and a bias of the product before


SHAPES = (
    Shape("vit-s-stage-1", 2, 56, 384, True),
    Shape("vit-s-stage-2", 2, 28, 768, True),
    Shape("vit-s-stage-3", 2, 14, 768, True),
    Shape("vit-s-stage-4", 2, 7, 1536, True),
    Shape("plain-56", 2, 56, 384, False),
    Shape("plain-14", 2, 14, 768, False),
)


@dataclass(frozen=True)
class Row:
    """A convolution to measure.

    Attributes:
        moh_ms, body_ms: CPU time, median, on one thread; wall time, minimum, on several.
        speedup: `body_ms / moh_ms`; above 1 ours is faster.
        max_abs_difference: Of the two outputs.
    """

    shape: str
    threads: int
    moh_ms: float
    body_ms: float
    speedup: float
    max_abs_difference: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = [
            _measure(shape, threads, options)
            for shape in options.shapes
            for threads in options.threads
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


def _measure(shape: Shape, threads: int, options: argparse.Namespace) -> Row:
    print(f"{shape.name}, threads: {threads}", file=sys.stderr)
    rng = np.random.default_rng(0)
    model, features = _model(shape, rng)
    ours, impl = kernel_session(model, ["MoHTokenConv"], options.kernels, threads=threads)
    require_kernels(options.kernels, impl)
    sessions = [ours, plain_session(model, threads=threads)]
    tokens = to_ort(rng.standard_normal((shape.batch, shape.side**2, features), dtype=np.float32))
    output_shape = (shape.batch, shape.side**2, shape.channels)
    outputs = [to_ort(np.full(output_shape, np.nan, np.float32)) for _ in sessions]
    calls = [_call(*pair, tokens) for pair in zip(sessions, outputs, strict=True)]
    difference = _difference(shape, calls, outputs)
    moh_ms, body_ms = interleaved_figures(calls, threads=threads, rounds=options.rounds)
    return Row(shape.name, threads, moh_ms, body_ms, body_ms / moh_ms, difference)


def _model(shape: Shape, rng: np.random.Generator) -> tuple[bytes, int]:
    """One node with constant weights, and the number of features of a token."""
    channels, features = shape.channels, shape.channels * (2 if shape.gated else 1)
    weights = {
        "W": rng.standard_normal((channels, 1, 3, 3), dtype=np.float32) / np.float32(3),
        "bias": rng.standard_normal(channels, dtype=np.float32),
    }
    if shape.gated:
        weights["input_bias"] = rng.standard_normal(features, dtype=np.float32)
    tokens = TensorType("float32", (shape.batch, shape.side**2, features))
    types = [tokens, *(TensorType("float32", array.shape) for array in weights.values())]
    attributes = {
        "channels": channels,
        "height": shape.side,
        "width": shape.side,
        "activation": "gelu" if shape.gated else "none",
        "gated": int(shape.gated),
    }
    model = single_node_model("MoHTokenConv", types, attributes)
    model.graph.node[0].name = "MoHTokenConv"
    del model.graph.input[1:]
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    content: bytes = model.SerializeToString()
    return content, features


def _call(session, output, tokens) -> Call:
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", tokens)
    binding.bind_ortvalue_output("Y", output)
    return lambda: session.run_with_iobinding(binding)


def _difference(shape: Shape, calls: Sequence[Call], outputs: Sequence[object]) -> float:
    """Run both sides once and return how far they are apart.

    Raises:
        WrongOutput: Too far.
    """
    for call in calls:
        call()
    first, second = (from_ort(output) for output in outputs)
    return check_error(shape.name, float(np.abs(first - second).max()), BOUND)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        title="CPU time on one thread (medians), wall time on several (minima)",
        title_justify="left",
    )
    for heading in (
        "shape",
        "threads",
        "kernel, ms",
        "function body, ms",
        "speed-up",
        "differs by",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        times = (f"{row.moh_ms:.3g}", f"{row.body_ms:.3g}", f"{row.speedup:.2f}")
        table.add_row(row.shape, str(row.threads), *times, f"{row.max_abs_difference:.1e}")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    named = {shape.name: shape for shape in SHAPES}
    help_text = ", ".join(named)
    add("--shapes", nargs="+", choices=named, default=list(named), metavar="NAME", help=help_text)
    add_run_options(parser, threads=[1, 2], rounds=11)
    options = parser.parse_args(arguments)
    options.shapes = [named[name] for name in options.shapes]
    options.kernels = kernels_or_exit(parser, "require", options.library)
    return options


if __name__ == "__main__":
    sys.exit(main())
