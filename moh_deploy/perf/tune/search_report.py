"""What a search for the fastest package that is still good tried, and what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moh_deploy.config.dtypes import RUNTIMES, Runtime
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.quality import Quality
from moh_deploy.report.document import Cell, Column, Document, Status, Table
from moh_deploy.report.json import in_json
from moh_deploy.report.numbers import count
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.validate.accuracy.metric_parity import shown

# What a search for the fastest package tried, and how each candidate ended.

Ending = Literal["chosen", "too slow", "not good", "could not run"]

FLOAT32 = "float32"


@dataclass(frozen=True)
class RuntimePrecision:
    """A runtime and a precision: one candidate of a search."""

    runtime: Runtime  # what runs it
    precision: str  # a name of `LOWER_PRECISIONS`, or `float32`

    @property
    @in_json()
    def name(self) -> str:
        """What reports call it: `int8 in ONNX Runtime`."""
        return f"{self.precision} in {RUNTIMES[self.runtime]}"


@dataclass(frozen=True)
class Timed:
    """The time of a candidate beside that of another, in turns."""

    rival: str  # the other one, the fastest at that time
    ms: float  # median of a run; of several inputs, as they weigh
    rival_ms: float  # the rival's, in the same turns
    ratio: Ratio  # its time over the rival's

    def inverse(self, name: str) -> Timed:
        """Return the rival's time beside this candidate's, of this name."""
        ratio = self.ratio
        turned = Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        return Timed(name, self.rival_ms, self.ms, turned)

    def sentence(self) -> str:
        """Return `1.310x the time of int8 in ONNX Runtime (95 %: 1.280x to 1.350x)`."""
        ratio = self.ratio
        interval = f"95 %: {ratio.low:.3f}x to {ratio.high:.3f}x"
        return f"{ratio.value:.3f}x the time of {self.rival} ({interval})"


@dataclass(frozen=True)
class Tried:
    """One candidate, and how it ended."""

    way: RuntimePrecision  # the candidate
    ending: Ending  # `chosen`, or why it was not
    reason: str | None = None  # that in a sentence; None of what was chosen
    timed: Timed | None = None  # its last measurement; None if it was not timed against another
    quality: Quality | None = None  # the last look at its samples; None if there was none


@dataclass(frozen=True)
class SearchReport(Report):
    """One search.

    Attributes:
        package: The float32 package.
        output: The package that was written; None if nothing was.
        within: The conditions.
        runtime: What the chosen package is the fastest in.
        precision: Of the chosen package.
        machine: Processor, cores and instruction set.
        clock: `CPU` or `wall`: what times are of.
        threads: Threads within an operator; None for the runtime's own choice.
        sizes: What was timed, one a set of inputs.
        tried: Every candidate.
        kernels: The kernel library of the chosen one.
    """

    package: Path
    output: Path | None
    within: tuple[str, ...]
    runtime: Runtime
    precision: str
    machine: str
    clock: str
    threads: int | None
    sizes: tuple[Mapping[str, int], ...]
    tried: tuple[Tried, ...]
    kernels: KernelUse

    def document(self) -> Document:
        """Return what it says."""
        judged = [way.quality for way in self.tried if way.quality is not None]
        metrics = list(dict.fromkeys(x.metric for quality in judged for x in quality.accuracy))
        columns: tuple[Column | str, ...] = (
            "candidate",
            "",
            "#ms",
            "#times",
            "of",
            "#other heads",
            *(f"#{name}" for name in metrics),
            Column("why not", width="long"),
        )
        at = "; ".join(map(sizes_text, self.sizes))
        threads = "" if self.threads is None else f", {count(self.threads, 'thread')}"
        title = f"tried, {self.clock} time of a run{threads}, at {at}"
        # What was never beaten has no rival: its time is what others were measured against.
        known = {way.timed.rival: way.timed.rival_ms for way in self.tried if way.timed is not None}
        rows = [_row(way, metrics, known.get(way.way.name)) for way in self.tried]
        return Document("tune", (Table(title, columns, rows),), findings=tuple(self._lines()))

    def _lines(self) -> Iterator[str]:
        chosen = next(way for way in self.tried if way.ending == "chosen")
        yield f"asked for: {'; '.join(self.within)}"
        if chosen.quality is not None:
            for metric in chosen.quality.accuracy:
                name, samples = metric.metric, count(metric.samples, "sample")
                value, reference = shown(name, metric.package), shown(name, metric.reference)
                yield f"{name} is {value}, {reference} in {metric.against}, on {samples}"
        yield f"chosen: {chosen.way.name}, on {self.machine}"
        yield self.kernels.describe()
        written = self.output
        yield f"written to {written}" if written is not None else "dry run: nothing was written"


def _row(way: Tried, metrics: Sequence[str], ms: float | None) -> tuple[Cell, ...]:
    timed, quality = way.timed, way.quality
    times = None
    if timed is not None:
        low, high = timed.ratio.low, timed.ratio.high
        times = f"{timed.ratio.value:.2f} ({low:.2f} to {high:.2f})"
    flips = None if quality is None else f"{quality.flips.tokens} of {quality.flips.of}"
    values = (
        {} if quality is None else {x.metric: shown(x.metric, x.package) for x in quality.accuracy}
    )
    return (
        way.way.name,
        Status(way.ending, True if way.ending == "chosen" else None),
        ms if timed is None else timed.ms,
        times,
        None if timed is None else timed.rival,
        flips,
        *(values.get(name) for name in metrics),
        way.reason,
    )
