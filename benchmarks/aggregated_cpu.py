"""MoHAggregatedAttention on the CPU kernel against its function body in ONNX Runtime, which
computes every head and gathers the windows.

Shapes are those of MoH-ViT small at 224 x 224 pixels. Both take turns in one process, on the same
inputs, and are compared with float64. On one thread CPU time counts, on several wall time.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from fma_peak import NoPeak, compile_peak
from interleaving import interleaved_figures
from op_timing import WrongOutput, check_error
from ort_session import Unusable, kernel_session, plain_session
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import add_run_options, fraction, kernels_or_exit, positive

from moh_deploy.errors import MoHDeployError
from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType

OP = "MoHAggregatedAttention"
PACKAGES = ("moh-deploy", "onnxruntime")
SHARES = [1.0, 0.75, 0.5]
BOUND = 1e-5
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """Layers of one size."""

    name: str
    side: int  # of the image, in tokens
    heads: int
    head_dim: int = 24
    window: int = 3
    pooled: int = 49

    @property
    def attributes(self) -> dict[str, int | float]:
        return {
            "num_heads": self.heads,
            "height": self.side,
            "width": self.side,
            "kernel_height": self.window,
            "kernel_width": self.window,
            "normalize": 1,
            "epsilon": 1e-12,
        }

    def inputs(self, batch: int, share: float) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        tokens, places = self.side**2, self.window**2
        heads, dim = self.heads, self.head_dim
        image, pool = (batch, tokens, heads * dim), (batch, self.pooled, heads * dim)
        shapes = {"Q": image, "K": image, "V": image, "pooled_K": pool, "pooled_V": pool}
        arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        arrays["gates"] = (rng.random((batch, tokens, heads)) < share).astype(np.float64)
        arrays["query_embedding"] = 0.1 * rng.standard_normal((heads, dim))
        arrays["query_scale"] = rng.uniform(1.0, 4.0, (heads, tokens))
        arrays["window_bias"] = rng.standard_normal((heads, places))
        arrays["pooled_bias"] = rng.standard_normal((heads, tokens, self.pooled))
        arrays["window_tokens"] = 0.1 * rng.standard_normal((heads, dim, places))
        arrays["window_offset"] = 0.1 * rng.standard_normal((heads, places))
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    def flops(self, inputs: dict[str, Array]) -> float:
        """Of the three products, for the heads that tokens chose."""
        seen = self.window**2 + self.pooled
        a_row = 2 * self.head_dim * (2 * seen + self.window**2)
        return float(np.count_nonzero(inputs["gates"])) * a_row


STAGES = (Stage("stage 1", 56, 3), Stage("stage 2", 28, 6), Stage("stage 3", 14, 12))


@dataclass(frozen=True)
class Row:
    """One printed row; times are milliseconds a run.

    Attributes:
        open_share: Of the gates.
        ratio: `function_ms / kernel_ms`; above 1 the kernel is faster.
        gflops: Of the kernel: multiply-adds of products of open rows, counted twice, a second.
    """

    shape: str
    batch: int
    open_share: float
    threads: int
    kernel_ms: float
    function_ms: float
    ratio: float
    gflops: float
    max_abs_error: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = [
            _measure(stage, share, threads, options)
            for threads in options.threads
            for stage in STAGES
            for share in options.open
        ]
    except (MoHDeployError, Unusable, WrongOutput) as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        "peak of a core": _peak(),
        "kernels": options.kernels.describe(),
        **versions(PACKAGES),
    }
    lines = [asdict(row) for row in rows]
    print_results(about, lines, [_table(rows)], as_json=options.json, width=130)
    return 0


def _measure(stage: Stage, share: float, threads: int, options: argparse.Namespace) -> Row:
    """Measure a shape of attention.

    Raises:
        Unusable: ONNX Runtime refuses the model.
        WrongOutput: An output differs from the float64 result.
    """
    inputs = stage.inputs(options.batch, share)
    types = [TensorType("float32", array.shape) for array in inputs.values()]
    model = single_node_model(OP, types, stage.attributes)
    content, node = model.SerializeToString(), model.graph.node[0].name
    ours, impl = kernel_session(content, [node], options.kernels, threads=threads)
    if impl[node] != "kernel":
        raise Unusable(f"{OP} ran as {impl[node]}; expected a kernel.")
    body = plain_session(content, threads=threads)
    (expected,) = OPS[OP].reference(list(inputs.values()), stage.attributes)
    errors = [float(np.abs(item.run(None, inputs)[0] - expected).max()) for item in (ours, body)]
    check_error(stage.name, max(errors), BOUND)
    calls = [lambda item=item: item.run(None, inputs) for item in (ours, body)]
    kernel_ms, function_ms = interleaved_figures(calls, threads=threads, rounds=options.rounds)
    return Row(
        shape=stage.name,
        batch=options.batch,
        open_share=share,
        threads=threads,
        kernel_ms=kernel_ms,
        function_ms=function_ms,
        ratio=function_ms / kernel_ms,
        gflops=stage.flops(inputs) / kernel_ms * 1e-6,
        max_abs_error=errors[0],
    )


def _peak() -> str:
    try:
        return f"{compile_peak()():.0f} GFLOP/s"
    except NoPeak as reason:
        return f"unknown: {reason}"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        title="CPU time on one thread (medians), wall time on several (minima), ms a run",
        title_justify="left",
    )
    headings = ("shape", "batch", "open", "threads", "kernel", "function", "function/kernel")
    for heading in (*headings, "GFLOP/s", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.shape,
            str(row.batch),
            f"{row.open_share:.3g}",
            str(row.threads),
            f"{row.kernel_ms:.3g}",
            f"{row.function_ms:.3g}",
            f"{row.ratio:.1f}",
            f"{row.gflops:.0f}",
            f"{row.max_abs_error:.1e}",
        )
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--open", nargs="+", type=fraction, default=SHARES, metavar="F", help="open gates")
    add("--batch", type=positive, default=2, metavar="N")
    add("--instruction-set", metavar="NAME", help="default: the best that the processor has")
    add_run_options(parser, threads=[1], rounds=21)
    options = parser.parse_args(arguments)
    options.kernels = kernels_or_exit(
        parser, "require", options.library, instruction_set=options.instruction_set
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
