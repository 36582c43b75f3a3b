"""The measurements of one candidate on one set of inputs, and the metrics that gates name."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.layer_models import attention_inputs
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import Choice, LayerInfo, OnnxPackage, current_choice, without_ranges
from moh_deploy.perf.bench.candidate import LEAST_RUNS, FreshRun, Latency, fed_by
from moh_deploy.perf.cost_model.prediction import platform_of, predict
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.layers import at_sizes_of
from moh_deploy.report.document import Cell, Share
from moh_deploy.report.report import FLAT, in_json
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.system.units import BYTES, MILLISECONDS, PER_SECOND, SHARE
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.tolerances import output_rule, tolerance_for
from moh_deploy.validate.reference.input_sets import InputSet

# Compare the outputs of candidates: a ratio of two different computations says little.


@dataclass(frozen=True)
class Agreement:
    """The distance of one candidate's outputs from those of the first package."""

    max_abs_error: float  # the largest difference; NaN where outputs cannot be compared
    # The most that `verify` would let it be, of the output that is the furthest off.
    tolerance: float | None
    reason: str | None  # what differs by more; None if nothing does


def agreement(
    got: Sequence[Array],
    reference: Mapping[str, Array],
    precisions: Collection[str],
    *,
    inputs: str,
) -> Agreement:
    """Compare outputs by their order.

    Args:
        got: Outputs of the candidate.
        reference: Those of the first package, by name.
        precisions: What the two compute in, by names of the table of tolerances.
        inputs: What both ran on, in words.
    """
    # By order, not by name: a foreign baseline calls its outputs something else.
    if len(got) != len(reference):
        reason = f"it has {len(got)} outputs, not {len(reference)}."
        return Agreement(math.nan, None, reason)
    # A float32 baseline is compared in the half precision of the package: rounding its outputs is
    # no fault of either. What is too large for that becomes infinite, and differs.
    found = []
    for (name, expected), array in zip(reference.items(), got, strict=True):
        dtype = expected.dtype.name
        # The coarsest rule holds: an output is no more precise than what either side computes in.
        rule = output_rule(dtype, tolerance_for(dtype), *map(tolerance_for, precisions))
        with np.errstate(over="ignore"):
            rounded = array.astype(expected.dtype)
        found.append(compare_output(name, inputs, rounded, expected, rule))
    worst = next((output for output in found if output.reason is not None), None)
    worst = worst or max(found, key=lambda item: item.max_abs_error, default=None)
    if worst is None:
        return Agreement(0.0, None, None)
    return Agreement(worst.max_abs_error, worst.tolerance, worst.reason)


@dataclass(frozen=True)
class Measured:
    """The measurements of one candidate on one set of inputs."""

    contestant: str  # its name
    is_baseline: bool  # it is there to be compared with
    inputs: str  # `recorded`, `random`, or the file
    sizes: dict[str, int]  # dimension sizes
    samples: int  # samples in one run, by the batch dimension
    # Of its runs in this process, taking turns with the others.
    latency: Latency = field(metadata=FLAT)
    fresh: FreshRun = field(metadata=FLAT)  # of a process of its own
    # Name of each baseline to this candidate's time over its, run by run.
    ratios: Mapping[str, Ratio]
    # Whether it computes what the first package does; None for that one.
    agreement: Agreement | None = None
    # What it computes wrongly, half a sentence; None if nothing was found, or looked for.
    fault: str | None = None

    @property
    @in_json()
    def throughput(self) -> float:
        """Samples that it computes in a second."""
        # By the mean: over a long time samples come at this rate, slow runs included.
        return 1e3 * self.samples / self.latency.mean_ms if self.latency.mean_ms else 0.0


@dataclass(frozen=True)
class _Metric:
    """A number of a candidate that reports show and gates may be about."""

    title: str  # of its column
    # Unit to how many of the metric's own units it is; that one is `unit`.
    units: Mapping[str, float]
    unit: str  # what follows the number in sentences
    read: Callable[[Measured], float | None]  # returns it; None where it was not measured
    show: Callable[[float], Cell]  # returns what a table shows of it
    why_missing: str = ""  # why there may be none

    def cell(self, measured: Measured) -> Cell:
        """Return what a table shows of a candidate."""
        value = self.read(measured)
        return None if value is None else self.show(value)

    def text(self, value: float) -> str:
        """Return a value with its unit, such as `1.23 ms`."""
        # Memory is read in bytes: people compare it in MiB, and gates may name any unit of `BYTES`.
        if self.unit == "MiB":
            return f"{value / 2**20:.5g} MiB"
        return f"{value:.5g} {self.unit}".strip()


def _milliseconds(
    title: str, read: Callable[[Measured], float | None], why_missing: str = ""
) -> _Metric:
    return _Metric(f"{title} ms", MILLISECONDS, "ms", read, _ms, why_missing)


def _ms(value: float) -> str:
    """Return milliseconds to three digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _needs(percent: int) -> str:
    return f"p{percent} needs {LEAST_RUNS[percent]} runs, there were fewer: raise --min-time"


_NO_PROCESS = "it cannot be loaded in a process of its own"

# One line makes a figure: a column in every format, and a metric for gates. JSON has the fields of
# `Measured` by themselves.
METRICS: Mapping[str, _Metric] = {
    "p50": _milliseconds("p50", lambda row: row.latency.p50_ms),
    "p90": _milliseconds("p90", lambda need: need.latency.p90_ms, _needs(90)),
    "p99": _milliseconds("p99", lambda need: need.latency.p99_ms, _needs(99)),
    "mean": _milliseconds("mean", lambda row: row.latency.mean_ms),
    "throughput": _Metric(
        "samples/s", PER_SECOND, "/s", lambda row: row.throughput, lambda value: f"{value:.4g}"
    ),
    "cpu": _milliseconds("CPU", lambda row: row.latency.cpu_ms),
    "utilisation": _Metric("busy", SHARE, "", lambda row: row.latency.utilisation, Share),
    "load": _milliseconds("load", lambda row: row.fresh.load_ms, _NO_PROCESS),
    "first_run": _milliseconds("first run", lambda row: row.fresh.first_run_ms, _NO_PROCESS),
    "peak_memory": _Metric(
        "peak MiB",
        BYTES,
        "MiB",
        lambda row: row.fresh.peak_memory_bytes,
        lambda value: f"{value / 2**20:.0f}",
        f"the system does not tell it, or {_NO_PROCESS}",
    ),
}
"""By the name that gates call them; columns of a report are in this order."""


# Count what layers of a package skip on given inputs, and predict up to where that pays.


@dataclass(frozen=True)
class LayerWork:
    """The rows that one layer computes in one run of the model, of those that it could."""

    path: str  # the layer
    choice: Choice | None  # how it is run at these sizes; None if it was not replaced
    runs_as: str | None  # `kernel`, `function` or `dense`; None if it was not replaced
    rows_computed: int  # rows of attention that are computed, one for each head of each token
    rows_dense: int  # rows of the layer that computes every head
    active_share: float  # share of the gates that are open
    # Each choice but `dense` to the share of open gates up to which it is predicted to be faster
    # than the one before it, None where it never is; empty where nothing is predicted.
    break_even: Mapping[str, float | None]
    # The choice that is predicted to be the fastest on these inputs.
    predicted_fastest: Choice | None


def layer_work(
    package: OnnxPackage, sets: Sequence[InputSet], variant: Variant
) -> list[tuple[LayerWork, ...]]:
    """Run a package once on each set of inputs and count what its layers skip.

    Args:
        variant: The way in which the package is opened, that is measured or judged.

    Raises:
        BackendError: The runtime failed.
        ConfigError: The package does not take these inputs.
    """
    model = load_ir(package)
    # Nodes within branches that depend on sizes are not found by name otherwise.
    choose_layers(model, without_ranges(package.manifest.layers))
    with open_runner(package, variant.returning(_read_by_layers(package, model))) as runner:
        return [_works(package, model, runner, input_set, variant) for input_set in sets]


def _read_by_layers(package: OnnxPackage, model: ir.Model) -> list[str]:
    given = {info.name for info in package.manifest.inputs}
    names: dict[str, None] = {}
    for layer in package.manifest.layers:
        read = attention_inputs(model, layer)
        # The recorded gates are counted; the attention's own gates and K tell its sizes and its
        # share.
        wanted = [layer.gates, *(read[name] for name in ("gates", "K") if name in read)]
        names |= dict.fromkeys(name for name in wanted if name not in given)
    return list(names)


def _works(
    package: OnnxPackage, model: ir.Model, runner: Runner, input_set: InputSet, variant: Variant
) -> tuple[LayerWork, ...]:
    # Another package may have made these inputs, and call them and its dimensions otherwise.
    inputs = fed_by(input_set, package.manifest.inputs, str(package.root))
    sizes = check_inputs(package.manifest.inputs, inputs)
    values = {**inputs, **runner.run(inputs)}
    found = runner.describe()
    platform = platform_of(package.manifest, found.kernels, variant.runtime, variant.threads)
    layers = zip(package.manifest.layers, found.layer_nodes, found.layer_runs, strict=True)

    def work(layer: LayerInfo, nodes: LayerNodes, run: LayerRun) -> LayerWork:
        sized = at_sizes_of(model, layer, values)
        predicted = predict(sized, nodes, platform)
        # Rows of attention: one head of one token each.
        gates = values[layer.gates]
        rows, active = gates.size, int(np.count_nonzero(gates))
        choice = current_choice(layer, sizes)
        # A function body computes all heads and multiplies with the gates: closed ones save
        # nothing.
        skips = run.runs_as == "kernel" and choice != "dense"
        return LayerWork(
            path=layer.path,
            choice=choice,
            runs_as="dense" if choice == "dense" else run.runs_as,
            rows_computed=active if skips else rows,
            rows_dense=rows,
            active_share=active / max(1, rows),
            break_even={} if predicted is None else predicted.break_even,
            predicted_fastest=None if predicted is None else predicted.best,
        )

    return tuple(work(*layer) for layer in layers)


@dataclass(frozen=True)
class PackageWork:
    """The work that the layers of a package skip on one set of inputs."""

    contestant: str  # the package
    inputs: str  # `recorded`, `random`, or the file
    sizes: dict[str, int]  # dimension sizes
    layers: tuple[LayerWork, ...]  # one each
