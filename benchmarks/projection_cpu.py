"""MoHQueryProjection and MoHOutputProjection on the CPU kernel against the dense product: MatMul
and Add in ONNX Runtime, with the weight as a constant on both sides. With `--bits 4` those with
weights of 4 bits, against MatMulNBits and Add.

All take turns in one process, on the same inputs, and every output is compared with float64. On one
thread CPU time counts, on several wall time. A ratio below 1 is a gain.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from interleaving import Call, interleaved_figures
from onnx import helper, numpy_helper
from op_inputs import Shape, draw_gates
from op_timing import WrongOutput, check_error
from ort_session import Unusable, kernel_session, plain_session
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import add_run_options, fraction, kernels_or_exit

from moh_deploy.errors import MoHDeployError
from moh_deploy.graph.weights_in_blocks import BlockWeight, matmul_nbits_attributes
from moh_deploy.ops.nbits_product import CONTRIB_DOMAIN, unpacked
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.runtime.kernel_use import require_kernels
from moh_deploy.runtime.onnxruntime.quantizer import quantize_weight
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from moh_deploy.system.npz import Array

PACKAGES = ("moh-deploy", "onnxruntime")
SHARES = [1.0, 0.9, 0.75, 0.5]
OPS = {"query": "MoHQueryProjection", "output": "MoHOutputProjection"}
# Largest |output - float64|, where outputs are of order 1 and sums have up to 4096 terms.
BOUND = 3e-5
# The same where what is multiplied is rounded to 8 bits.
BOUND_4_BITS = 0.1
# Where memory happens to lie makes up to a third; several inputs even that out.
_SETS = 3
_LINE_FLOATS = 16  # float32 numbers in a cache line


@dataclass(frozen=True)
class Layer:
    """A layer whose projections are measured; `width` is that of its input and output."""

    name: str
    tokens: int
    width: int
    num_heads: int
    head_dim: int


LAYERS = (
    Layer("dit-s", 512, 384, 6, 64),
    Layer("dit-b", 512, 768, 12, 64),
    Layer("vit-stage-3", 392, 288, 12, 24),
    Layer("vit-stage-4", 98, 576, 24, 24),
    Layer("llama-small", 512, 512, 8, 64),
    Layer("llama-8b", 512, 4096, 32, 128),
    Layer("decode-small", 1, 512, 8, 64),
    Layer("decode-8b", 1, 4096, 32, 128),
)


@dataclass(frozen=True)
class Row:
    """One projection at one share of open gates.

    Attributes:
        moh_ms, dense_ms: CPU time, median, on one thread; wall time, minimum, on several.
        ratio: `moh_ms / dense_ms`; below 1 ours is faster.
        max_abs_error: Of ours, against float64.
    """

    layer: str
    op: str
    bits: int
    threads: int
    active: float
    moh_ms: float
    dense_ms: float
    ratio: float
    max_abs_error: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = [
            row
            for layer in options.layers
            for op in OPS
            for threads in options.threads
            for row in _measure(layer, op, threads, options)
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
    print_results(about, lines, [_table(rows, options.active)], as_json=options.json, width=130)
    return 0


def _measure(layer: Layer, op: str, threads: int, options: argparse.Namespace) -> list[Row]:
    print(f"{layer.name}, {op}, threads: {threads}", file=sys.stderr)
    rng = np.random.default_rng(0)
    weight, bias = _draw_weights(layer, op, rng)
    blocks = quantize_weight(weight, 4) if options.bits == 4 else None
    dense = plain_session(_model(layer, op, weight, bias, "dense", blocks), threads=threads)
    ours, impl = kernel_session(
        _model(layer, op, weight, bias, "moh", blocks), [OPS[op]], options.kernels, threads=threads
    )
    if blocks is not None:  # what was multiplied, as the error is of the product alone
        weight = unpacked(blocks.packed, blocks.scales)[: len(weight)]
    require_kernels(options.kernels, impl)
    sets = [[_draw_inputs(layer, op, share, rng) for _ in range(_SETS)] for share in options.active]
    output = to_ort(_aligned((1, layer.tokens, weight.shape[1])))
    calls = [_call(ours, item, output) for item in sets]
    errors = []
    for item, call in zip(sets, calls, strict=True):
        call()
        bound = BOUND if blocks is None else BOUND_4_BITS
        errors.append(_error(layer, op, from_ort(output), item[0], weight, bias, bound))
    calls.insert(0, _call(dense, [{"X": item["X"]} for item in sets[0]], output))
    dense_ms, *moh_ms = interleaved_figures(calls, threads=threads, rounds=options.rounds)
    return [
        Row(layer.name, op, options.bits, threads, share, ms, dense_ms, ms / dense_ms, error)
        for share, ms, error in zip(options.active, moh_ms, errors, strict=True)
    ]


def _draw_weights(layer: Layer, op: str, rng: np.random.Generator) -> tuple[Array, Array]:
    rows, columns = layer.width, layer.num_heads * layer.head_dim
    if op == "output":
        rows, columns = columns, rows
    weight = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(rows**-0.5)
    return weight, rng.standard_normal(columns, dtype=np.float32)


def _draw_inputs(layer: Layer, op: str, share: float, rng: np.random.Generator) -> dict[str, Array]:
    hidden = layer.num_heads * layer.head_dim
    width = layer.width if op == "query" else hidden
    x = rng.standard_normal((1, layer.tokens, width), dtype=np.float32)
    shape = Shape(
        layer.name, 1, layer.num_heads, layer.num_heads, layer.tokens, layer.tokens, layer.head_dim
    )
    gates = draw_gates(shape, share, rng)
    if op == "output":
        x *= np.repeat(gates != 0, layer.head_dim, axis=-1)
    aligned = _aligned(x.shape)
    aligned[:] = x
    return {"X": aligned, "gates": gates}


def _aligned(shape: tuple[int, ...]) -> Array:
    """Memory as ONNX Runtime gives it to what lies between two nodes."""
    size = int(np.prod(shape))
    memory = np.empty(size + _LINE_FLOATS, np.float32)
    start = -memory.ctypes.data // memory.itemsize % _LINE_FLOATS
    return memory[start : start + size].reshape(shape)


def _model(
    layer: Layer, op: str, weight: Array, bias: Array, side: str, blocks: BlockWeight | None
) -> bytes:
    """One projection: X and gates to Y, [1, tokens, columns]."""
    stored = {"W": weight, "b": bias}
    rows, columns = weight.shape
    if blocks is not None:
        stored = {"W": blocks.packed, "scales": blocks.scales, "b": bias}
    if side == "moh" and blocks is not None:
        sizes = {"num_heads": layer.num_heads, "in_features": rows, "out_features": columns}
        names = ["X", "W", "gates", "scales", "b"]
        nodes = [make_node(f"{OPS[op]}NBits", names, ["Y"], **sizes)]
        nodes[0].name = OPS[op]
        inputs = {"X": rows, "gates": layer.num_heads}
    elif side == "moh":
        nodes = [make_node(OPS[op], ["X", "W", "gates", "b"], ["Y"], num_heads=layer.num_heads)]
        nodes[0].name = OPS[op]
        inputs = {"X": weight.shape[0], "gates": layer.num_heads}
    else:
        product = helper.make_node("MatMul", ["X", "W"], ["product"])
        if blocks is not None:
            product = helper.make_node(
                "MatMulNBits",
                ["X", "W", "scales"],
                ["product"],
                domain=CONTRIB_DOMAIN,
                **matmul_nbits_attributes(rows, columns, bits=4),
            )
        nodes = [product, helper.make_node("Add", ["product", "b"], ["Y"])]
        inputs = {"X": rows}
    graph = helper.make_graph(
        nodes,
        op,
        [_value(layer, name, size) for name, size in inputs.items()],
        [_value(layer, "Y", columns)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid(*item) for item in (("", 18), ("moh", 1), (CONTRIB_DOMAIN, 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def _value(layer: Layer, name: str, size: int) -> onnx.ValueInfoProto:
    shape = [1, layer.tokens, size]
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _call(session, sets: Sequence[dict[str, Array]], output) -> Call:
    """Return what computes one set after the other."""
    bindings, kept = [], []
    for feeds in sets:
        binding = session.io_binding()
        for name, array in feeds.items():
            value = to_ort(array)
            binding.bind_ortvalue_input(name, value)
            kept.append((value, array))  # A value does not own the array that it was made from.
        binding.bind_ortvalue_output("Y", output)
        bindings.append(binding)
    turns = itertools.cycle(bindings)
    return lambda: kept and session.run_with_iobinding(next(turns))


def _error(
    layer: Layer,
    op: str,
    output: Array,
    feeds: dict[str, Array],
    weight: Array,
    bias: Array,
    bound: float,
) -> float:
    """Return how far what is specified of an output is from float64.

    Raises:
        WrongOutput: Too far.
    """
    expected = feeds["X"].astype(np.float64) @ weight.astype(np.float64) + bias
    off = np.abs(output - expected)
    if op == "query":
        off = off[np.repeat(feeds["gates"] != 0, layer.head_dim, axis=-1)]
    return check_error(f"{layer.name}, {op}", float(off.max(initial=0.0)), bound)


def _table(rows: Sequence[Row], shares: Sequence[float]) -> Table:
    table = Table(
        title="Time over that of MatMul, or MatMulNBits, and Add: CPU time on one thread (medians),"
        " wall time on several (minima)",
        title_justify="left",
    )
    for heading in ("layer", "projection", "threads", "dense, ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for share in shares:
        table.add_column(f"f = {share:g}", justify="right")
    table.add_column("error", justify="right")
    for first in range(0, len(rows), len(shares)):
        group = rows[first : first + len(shares)]
        row = group[0]
        table.add_row(
            row.layer,
            row.op,
            str(row.threads),
            f"{row.dense_ms:.4g}",
            *(f"{item.ratio:.2f}" for item in group),
            f"{max(item.max_abs_error for item in group):.1e}",
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
    add("--active", nargs="+", type=fraction, default=SHARES, metavar="F", help="open gates")
    add("--bits", type=int, choices=(32, 4), default=32, help="of a number of the weight")
    add_run_options(parser, threads=[1, 2], rounds=11)
    return parser


if __name__ == "__main__":
    sys.exit(main())
