"""The measurements of one candidate on one set of inputs, and the metrics that gates name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moh_deploy.perf.bench.fresh_run import FreshRun
from moh_deploy.perf.bench.latency import LEAST_RUNS, Latency
from moh_deploy.perf.timing import Ratio
from moh_deploy.report.document import Cell, Share
from moh_deploy.report.json import FLAT, in_json
from moh_deploy.system.npz import Array
from moh_deploy.system.units import BYTES, MILLISECONDS, PER_SECOND, SHARE
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.tolerances import Tolerance, output_rule, tolerance_for

# Compare the outputs of candidates: a ratio of two different computations says little.


@dataclass(frozen=True)
class Agreement:
    """The distance of one candidate's outputs from those of the first package.

    Attributes:
        max_abs_error: The largest difference; NaN where outputs cannot be compared.
        tolerance: The most that `verify` would let it be, of the output that is the furthest off.
        reason: What differs by more; None if nothing does.
    """

    max_abs_error: float
    tolerance: float | None
    reason: str | None


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
    # By order, not by name: a baseline of somebody else calls its outputs something else.
    if len(got) != len(reference):
        reason = f"it has {len(got)} outputs, not {len(reference)}."
        return Agreement(math.nan, None, reason)
    # A float32 baseline is compared in the half precision of the package: rounding its outputs is
    # no fault of either. What is too large for that becomes infinite, and differs.
    with np.errstate(over="ignore"):
        found = [
            compare_output(
                name, inputs, array.astype(expected.dtype), expected, _rule(expected, precisions)
            )
            for (name, expected), array in zip(reference.items(), got, strict=True)
        ]
    worst = next((output for output in found if output.reason is not None), None)
    worst = worst or max(found, key=lambda item: item.max_abs_error, default=None)
    if worst is None:
        return Agreement(0.0, None, None)
    return Agreement(worst.max_abs_error, worst.tolerance, worst.reason)


def _rule(expected: Array, precisions: Collection[str]) -> Tolerance:
    dtype = expected.dtype.name
    # The coarsest rule holds: an output can be no more precise than what either side computes in.
    return output_rule(dtype, tolerance_for(dtype), *map(tolerance_for, precisions))


@dataclass(frozen=True)
class Measured:
    """The measurements of one candidate on one set of inputs.

    Attributes:
        contestant: Its name.
        is_baseline: It is there to be compared with.
        inputs: `recorded`, `random`, or the file.
        sizes: Dimension sizes.
        samples: Samples in one run, by the batch dimension.
        latency: Of its runs in this process, taking turns with the others.
        fresh: Of a process of its own.
        ratios: Name of each baseline to this candidate's time over its, run by run.
        agreement: Whether it computes what the first package does; None for that one.
        fault: What it computes wrongly, half a sentence; None if nothing was found, or looked for.
    """

    contestant: str
    is_baseline: bool
    inputs: str
    sizes: dict[str, int]
    samples: int
    latency: Latency = field(metadata=FLAT)
    fresh: FreshRun = field(metadata=FLAT)
    ratios: Mapping[str, Ratio]
    agreement: Agreement | None = None
    fault: str | None = None

    @property
    @in_json()
    def throughput(self) -> float:
        """Samples that it computes in a second."""
        # By the mean: over a long time samples come at this rate, slow runs included.
        return 1e3 * self.samples / self.latency.mean_ms if self.latency.mean_ms else 0.0


@dataclass(frozen=True)
class _Metric:
    """A number of a contestant that reports show and gates may be about.

    Attributes:
        title: Of its column.
        units: Unit to how many of the metric's own units it is; that one is `unit`.
        unit: What follows the number in sentences.
        read: Returns it; None where it was not measured.
        show: Returns what a table shows of it.
        why_missing: Why there may be none.
    """

    title: str
    units: Mapping[str, float]
    unit: str
    read: Callable[[Measured], float | None]
    show: Callable[[float], Cell]
    why_missing: str = ""

    def cell(self, measured: Measured) -> Cell:
        """Return what a table shows of a contestant."""
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
