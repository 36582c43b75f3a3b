"""Measure operators, and fit the costs of `moh_deploy/perf/cost_model/milliseconds.py` to them.

    python benchmarks/cost_model.py --measure times.json
    python benchmarks/cost_model.py --measure bfloat16.json --runtime openvino --dtype bfloat16
    python benchmarks/cost_model.py --fit times.json

CPU time of one thread. Candidates take turns. The time of an empty session is subtracted.
"""

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import get_args

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType
from moh_deploy.package import ComputeType
from moh_deploy.perf.cost_model import milliseconds as cost_model
from moh_deploy.perf.cost_model.milliseconds import LayerShape
from moh_deploy.perf.timing import Stopwatch
from moh_deploy.runtime.base import Runner, Runtime, Variant
from moh_deploy.runtime.open_runner import open_runner

SHARES = (1.0, 0.75, 0.5, 0.25)
COPIES = 6
NUMPY_TYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One measurement: a function of the cost model by name, its arguments, and the time."""

    what: str
    shape: LayerShape
    features: int | None
    ms: float


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, metavar="FILE", help="Measure, and write times.")
    parser.add_argument(
        "--fit", type=Path, nargs="+", metavar="FILE", help="Read times, and print costs."
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="For each comparison.")
    parser.add_argument("--library", type=Path, help="A kernel library other than installed.")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="onnxruntime")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compute-type", choices=get_args(ComputeType), default="float32")
    options = parser.parse_args()
    if options.measure:
        variant = Variant(
            runtime=options.runtime,
            kernels="require",
            library=options.library,
            compute_type=options.compute_type,
            threads=1,
        )
        bench = Bench(Stopwatch.for_threads(1, options.seconds), variant, options.dtype)
        rows = [*bench.attention(), *bench.aggregated(), *bench.projections()]
        options.measure.write_text(json.dumps([asdict(row) for row in rows]))
    if options.fit:
        content = [row for file in options.fit for row in json.loads(file.read_text())]
        report([Row(**{**item, "shape": LayerShape(**item["shape"])}) for item in content])


# Shapes.


def attention_shapes() -> Iterator[LayerShape]:
    """Yield self-attention, causal with grouped heads, steps on a cache, and biases of scores."""
    square = [(1, 4, 16, 16), (2, 6, 64, 64), (1, 16, 49, 24), (1, 16, 196, 24), (4, 12, 196, 32)]
    square += [(4, 8, 16, 8), (1, 4, 64, 4), (4, 4, 64, 8), (2, 6, 256, 8), (2, 6, 256, 64)]
    square += [(2, 16, 256, 72), (1, 8, 400, 40), (1, 8, 1024, 64)]
    for batch, heads, tokens, dim in [*square, (1, 4, 2048, 32)]:
        yield LayerShape(batch, tokens, tokens, heads, heads, dim, 0, 1.0)
    causal = [(2, 8, 2, 12, 4), (2, 8, 2, 16, 64), (1, 8, 2, 64, 64), (2, 8, 2, 256, 64)]
    causal += [(1, 32, 8, 128, 128), (1, 8, 2, 512, 64), (1, 16, 4, 512, 128), (1, 8, 2, 2048, 128)]
    for batch, heads, kv_heads, tokens, dim in [*causal, (1, 8, 8, 1024, 64)]:
        yield LayerShape(batch, tokens, tokens, heads, kv_heads, dim, 0, 1.0, is_causal=True)
    steps = [(1, 8, 2, 128, 64), (1, 12, 12, 512, 64), (1, 32, 8, 512, 128), (8, 8, 2, 256, 64)]
    for batch, heads, kv_heads, keys, dim in [*steps, (1, 32, 32, 1024, 128)]:
        yield LayerShape(batch, 1, keys, heads, kv_heads, dim, 0, 1.0)
    yield LayerShape(2, 3, 8, 8, 2, 64, 0, 1.0)
    for batch, heads, tokens, dim in [(2, 6, 64, 64), (4, 12, 196, 32), (1, 8, 512, 64)]:
        yield LayerShape(batch, tokens, tokens, heads, heads, dim, 0, 1.0, has_mask=True)


def aggregated_shapes() -> Iterator[LayerShape]:
    """Yield square images with windows of 3x3 and images pooled to 7x7 and others."""
    sizes = [(2, 3, 56, 24, 7), (2, 6, 28, 24, 7), (2, 12, 14, 24, 7), (1, 4, 8, 16, 2)]
    for batch, heads, side, dim, pooled in [*sizes, (2, 4, 8, 8, 2), (1, 8, 24, 32, 12)]:
        yield LayerShape(batch, side**2, pooled**2, heads, heads, dim, 0, 1.0, window=9)


def projection_shapes() -> Iterator[LayerShape]:
    """Yield layers whose projections are as wide as their heads together."""
    sizes = [(1, 16, 4, 16), (1, 64, 6, 64), (2, 196, 6, 64), (2, 196, 16, 24), (2, 256, 6, 64)]
    sizes += [(4, 16, 8, 8), (2, 12, 8, 4), (2, 64, 4, 8), (2, 256, 6, 8), (2, 3, 8, 64)]
    sizes += [(2, 256, 16, 72), (1, 512, 16, 128), (1, 1, 16, 128), (8, 1, 8, 64), (1, 784, 8, 24)]
    for batch, tokens, heads, dim in sizes:
        yield LayerShape(batch, tokens, tokens, heads, heads, dim, 0, 1.0)


def gates_of(shape: LayerShape, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw gates [B, S, H]: half of the open heads are shared, the others random by token."""
    open_heads = round(share * shape.num_heads)
    ranks = rng.random((shape.batch, shape.seq_len, shape.num_heads))
    ranks[..., : open_heads // 2] = 2.0
    chosen = ranks.argsort(axis=-1).argsort(axis=-1) >= shape.num_heads - open_heads
    return (chosen * rng.uniform(0.5, 1.5, chosen.shape)).astype(np.float32)


def with_gates(shape: LayerShape, gates: np.ndarray) -> LayerShape:
    """Return the shape with the share of open heads of these gates."""
    share = np.count_nonzero(gates) / gates.size
    shared = round(share * shape.num_heads) // 2
    return replace(shape, active_share=share, num_shared_heads=shared)


# Measuring.


@dataclass(frozen=True)
class Bench:
    """Times dense and sparse operators in turn."""

    stopwatch: Stopwatch
    variant: Variant
    dtype: str

    def attention(self) -> Iterator[Row]:
        """Time function body and kernel of MoHAttention."""
        rng = np.random.default_rng(0)
        for shape in attention_shapes():
            keys = (shape.batch, shape.kv_len, shape.num_kv_heads * shape.head_dim)
            inputs = {
                "Q": rng.standard_normal((shape.batch, shape.seq_len, shape.width), np.float32),
                "K": rng.standard_normal(keys, np.float32),
                "V": rng.standard_normal(keys, np.float32),
            }
            if shape.has_mask:  # hides no key, as a prediction does not know the numbers of a mask
                sizes = (1, 1, shape.seq_len, shape.kv_len)
                inputs["attn_mask"] = rng.standard_normal(sizes, np.float32)
            attributes = {
                "q_num_heads": shape.num_heads,
                "kv_num_heads": shape.num_kv_heads,
                "scale": shape.head_dim**-0.5,
                "is_causal": int(shape.is_causal),
            }
            kinds = ("dense_attention", "sparse_attention")
            yield from self._compare("MoHAttention", kinds, shape, inputs, {}, attributes)

    def aggregated(self) -> Iterator[Row]:
        """Time function body and kernel of MoHAggregatedAttention, with every input."""
        rng = np.random.default_rng(3)
        for shape in aggregated_shapes():
            heads, dim, window = shape.num_heads, shape.head_dim, shape.window
            tokens = (shape.batch, shape.seq_len, shape.width)
            pooled = (shape.batch, shape.kv_len, shape.width)
            sizes = dict.fromkeys("QKV", tokens)
            sizes |= {"pooled_K": pooled, "pooled_V": pooled}
            sizes["gates"] = (shape.batch, shape.seq_len, heads)
            sizes |= {"query_embedding": (heads, dim), "query_scale": (heads, shape.seq_len)}
            sizes |= {"window_bias": (heads, window), "window_tokens": (heads, dim, window)}
            sizes |= {"pooled_bias": (heads, shape.seq_len, shape.kv_len)}
            sizes |= {"window_offset": (heads, window)}
            order = [item.name for item in OPS["MoHAggregatedAttention"].inputs]
            inputs = {name: rng.standard_normal(sizes[name], np.float32) for name in order}
            weights = {name: inputs.pop(name) for name in order[6:]}
            side = math.isqrt(shape.seq_len)
            attributes = {"num_heads": heads, "height": side, "width": side}
            attributes |= {"kernel_height": 3, "kernel_width": 3, "normalize": 1}
            kinds = ("dense_aggregated", "sparse_aggregated")
            op = "MoHAggregatedAttention"
            yield from self._compare(op, kinds, shape, inputs, weights, attributes)

    def projections(self) -> Iterator[Row]:
        """Time matrix products and the kernels of both projections."""
        rng = np.random.default_rng(1)
        for shape in projection_shapes():
            x = rng.standard_normal((shape.batch, shape.seq_len, shape.width), np.float32)
            weight = {"W": rng.standard_normal((shape.width, shape.width), np.float32)}
            kinds = ("dense_projection", "sparse_projection")
            for op in ("MoHQueryProjection", "MoHOutputProjection"):
                attributes = {"num_heads": shape.num_heads}
                yield from self._compare(op, kinds, shape, {"X": x}, weight, attributes)

    def _compare(
        self,
        op: str,
        kinds: tuple[str, str],
        shape: LayerShape,
        inputs: Arrays,
        weights: Arrays,
        attributes: Mapping[str, int | float],
    ) -> Iterator[Row]:
        rng = np.random.default_rng(2)
        dtype = NUMPY_TYPES[self.dtype]
        inputs = {name: array.astype(dtype) for name, array in inputs.items()}
        weights = {name: array.astype(dtype) for name, array in weights.items()}
        drawn = {f"{share}": gates_of(shape, share, rng).astype(dtype) for share in SHARES}
        arrays = {**inputs, **weights, "gates": drawn["1.0"]}
        model = node_model(op, arrays, weights, attributes)
        dense = self._open(in_domain(model, "moh.dense"))
        sparse = self._open(in_domain(model, "moh"))
        nothing = self._open(empty_model(model))
        calls: dict[str, Callable[[], object]] = {
            "nothing": by_turns(nothing, {**inputs, "gates": drawn["1.0"]}),
            "dense": by_turns(dense, {**inputs, "gates": drawn["1.0"]}),
        }
        for share, gates in drawn.items():
            calls[share] = by_turns(sparse, {**inputs, "gates": gates})
        ms = {name: median(all_) for name, all_ in self.stopwatch(op, calls).items()}
        features = shape.width if "W" in weights else None
        for name in ("dense", *drawn):
            measured = with_gates(shape, drawn.get(name, drawn["1.0"]))
            kind = kinds[0] if name == "dense" else kinds[1]
            yield Row(kind, measured, features, ms[name] - ms["nothing"])

    def _open(self, model: onnx.ModelProto) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            onnx.save(model, path)
            return open_runner(path, self.variant)


def by_turns(runner: Runner, inputs: Arrays) -> Callable[[], object]:
    """Return a call that reads other copies of its inputs each time.

    Within a model other operators fill the near caches between two calls.
    """
    copies = [{name: array.copy() for name, array in inputs.items()} for _ in range(COPIES)]
    calls = itertools.cycle([runner.bound(copy) for copy in copies])
    return lambda: next(calls)()


def node_model(
    op: str, arrays: Arrays, weights: Arrays, attributes: Mapping[str, int | float]
) -> onnx.ModelProto:
    """Return a model of one node, whose weights are constants."""
    types = [
        TensorType(arrays[item.name].dtype.name, arrays[item.name].shape)
        if item.name in arrays
        else None
        for item in OPS[op].inputs
    ]
    model = single_node_model(op, types, attributes)
    inputs = [item for item in model.graph.input if item.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    model.graph.node[0].name = "node"
    model.opset_import.append(helper.make_opsetid("moh.dense", 1))
    return model


def in_domain(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """Return a copy with the node and its body in a domain."""
    moved = onnx.ModelProto.FromString(model.SerializeToString())
    moved.graph.node[0].domain = moved.functions[0].domain = domain
    return moved


def empty_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the same inputs that only copies the gates."""
    empty = onnx.ModelProto.FromString(model.SerializeToString())
    del empty.graph.node[:], empty.functions[:], empty.graph.initializer[:]
    empty.graph.node.append(helper.make_node("Identity", ["gates"], [empty.graph.output[0].name]))
    empty.graph.output[0].type.CopyFrom(
        next(item for item in empty.graph.input if item.name == "gates").type
    )
    return empty


# Fitting.


def report(rows: Sequence[Row]) -> None:
    """Print the costs of each kind, and how well they fit."""
    for kind in dict.fromkeys(row.what for row in rows):
        mine = [row for row in rows if row.what == kind]
        counts = [counts_of(row) for row in mine]
        costs = fit(counts, [row.ms for row in mine])
        print(kind, {name: float(f"{cost:.3g}") for name, cost in costs.items()})
        predicted = [sum(costs[n] * c for n, c in count.items()) / 1e6 for count in counts]
        off = [p / row.ms for p, row in zip(predicted, mine, strict=True)]
        low, middle, high = np.quantile(off, [0.1, 0.5, 0.9])
        print(f"  predicted / measured, of {len(off)}: {low:.2f} {middle:.2f} {high:.2f}")
        for row, ms, ratio in zip(mine, predicted, off, strict=True):
            shape = row.shape
            sizes = (shape.batch, shape.num_heads, shape.num_kv_heads, shape.seq_len, shape.kv_len)
            print(f"  {(*sizes, shape.head_dim)} {shape.active_share:.2f}", end=" ")
            print(f"{row.ms:.4f} ms, predicted {ms:.4f}, {ratio:.2f}")


def counts_of(row: Row) -> Mapping[str, float]:
    """Return the counts of the cost model for a measurement."""
    count = getattr(cost_model, row.what)
    found: Mapping[str, float] = (
        count(row.shape) if row.features is None else count(row.shape, row.features)
    )
    return found


def fit(counts: Sequence[Mapping[str, float]], ms: Sequence[float]) -> dict[str, float]:
    """Return nanoseconds for each count, 0 or more: least squares of relative errors."""
    names = list(counts[0])
    matrix = np.array([[count[name] for name in names] for count in counts])
    relative = matrix / (np.array(ms)[:, None] * 1e6)
    return dict(zip(names, non_negative(relative, np.ones(len(ms))), strict=True))


def non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve least squares without negative coefficients, by coordinate descent."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    columns = matrix / scale
    gram, right = columns.T @ columns, columns.T @ target
    solution = np.zeros(len(scale))
    for _ in range(50_000):
        before = solution.copy()
        for i in np.flatnonzero(np.diag(gram)):
            step = (right[i] - gram[i] @ solution) / gram[i, i]
            solution[i] = max(0.0, solution[i] + step)
        if np.abs(solution - before).max() < 1e-12:
            break
    return solution / scale


if __name__ == "__main__":
    main()
