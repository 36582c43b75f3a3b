"""What `optimize` wrote: how fast it is beside the original, how exact, and what else was tried."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.tune.report import SearchReport, Tried
from moh_deploy.report import document as doc
from moh_deploy.report.report import FLAT, Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.validate.accuracy.metric_parity import MetricParity, shown
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import ParityResult


@dataclass(frozen=True)
class ProofRecord:
    """A comparison that found a package equal to its reference."""

    package: str  # what was compared
    reference: str  # with what
    runs: int  # on how many runs
    max_abs_error: float  # the largest of any output
    # Share of equal (token, head) decisions, near-ties left out; None where gates are not known.
    routing_agreement: float | None
    accuracy: tuple[MetricParity, ...]  # metrics of both sides, where there are labels

    @classmethod
    def of(cls, report: ParityReport, package: str) -> Self:
        """Keep what a report says.

        Where outputs are equal on all samples, too few of them to judge a metric are no failure.

        Raises:
            ValidationError: It says that something is not equal.
        """
        parts = tuple(replace(part, accuracy=_told(part)) for part in report.parts)
        replace(report, accuracy=_told(report), parts=parts).raise_if_unequal()
        return cls(
            package,
            report.reference,
            report.vector_sets,
            report.max_abs_error,
            report.routing_agreement,
            report.accuracy,
        )


def _told(report: ParityResult) -> tuple[MetricParity, ...]:
    return tuple(metric for metric in report.accuracy if metric.verdict != "cannot tell")


@dataclass(frozen=True)
class Speedup:
    """The speed of the written package beside a baseline, as `bench` measured it."""

    over: str  # the baseline
    inputs: str  # what both ran on: a file, `recorded` or `random`
    sizes: Mapping[str, int]
    p50_ms: float  # of the package
    baseline_p50_ms: float
    times: float  # how many times as fast as the baseline the package is
    low: float  # the true median of that is above this, with 95 % certainty
    high: float  # and below this

    @classmethod
    def of(cls, report: BenchReport, names: Mapping[str, str]) -> Iterator[Self]:
        """Yield what `bench` measured of one package.

        Args:
            names: Each baseline to the words for it.
        """
        p50_ms = {
            (row.contestant, row.inputs, str(row.sizes)): row.latency.p50_ms
            for row in report.results
        }
        for row in report.results:
            # Baselines have ratios to each other, too.
            for baseline, ratio in row.ratios.items() if not row.is_baseline else ():
                yield cls(
                    names[baseline],
                    row.inputs,
                    row.sizes,
                    row.latency.p50_ms,
                    p50_ms[baseline, row.inputs, str(row.sizes)],
                    # The ends change places: a ratio is of times.
                    times=1 / ratio.value,
                    low=1 / ratio.high,
                    high=1 / ratio.low,
                )

    def sentence(self) -> str:
        """Return `2.310x as fast as the original model (95 %: 2.280x to 2.350x)`."""
        interval = f"95 %: {self.low:.3f}x to {self.high:.3f}x"
        return f"{self.times:.3f}x as fast as {self.over} ({interval})"


@dataclass(frozen=True)
class OptimizeReport(Report):
    """The package that `optimize` chose: its speed, its errors, and the other candidates.

    Attributes:
        model: What was optimized, as the user named it.
        speedups: Of the written package, beside the original and the float32 package.
        proofs: That the float32 package is the original model, and the written package, too.
        search: What was tried.
        bench_command: The command that measures `speedups` again; None for a model in memory.
    """

    model: str
    speedups: tuple[Speedup, ...]
    proofs: tuple[ProofRecord, ...]
    search: SearchReport = field(metadata=FLAT)
    bench_command: str | None = None

    @property
    def kernels(self) -> KernelUse:
        """The kernel library of the written package."""
        return self.search.kernels

    @property
    def _chosen(self) -> Tried:
        return next(row for row in self.search.tried if row.ending == "chosen")

    def document(self) -> doc.Document:
        """Return what it says."""
        tried = self.search.document()
        headline = f"{self._chosen.way.name}, {self.speedups[0].sentence()}"
        written = f"written to {self.search.output}"
        command = self.bench_command
        again = () if command is None else (doc.Text(f"to measure: {command}", is_whole=True),)
        return doc.Document(
            "optimize",
            (*self._speeds(), *again, *tried.blocks, *self._proven()),
            doc.Verdict("FASTEST GOOD PACKAGE", True, f"{headline}.", (f"{headline}; {written}",)),
            facts=tuple(self._facts()),
            findings=(self._why(), *tried.findings),
            warning=self.kernels.warning,
        )

    def _why(self) -> str:
        """Return the sentence on why the winner won."""
        chosen, others = self._chosen, len(self.search.tried) - 1
        good = "every condition holds"
        if chosen.quality is not None:
            if chosen.quality.too_few is not None:
                good = "its outputs are equal, and every sample scores as in the float32 package"
            flips = chosen.quality.flips
            good += f", and {flips.tokens} of {flips.of} tokens choose other heads"
        if chosen.timed is None:
            return f"{chosen.way.name} is kept: none of {others} others is faster and good; {good}"
        return f"{chosen.way.name} won: it took {chosen.timed.sentence()}; {good}"

    def _facts(self) -> Iterator[doc.Fact]:
        for speedup in self.speedups[:2]:
            interval = f"95 %: {speedup.low:.3g}x to {speedup.high:.3g}x"
            yield doc.Fact(f"speed over {speedup.over}", f"{speedup.times:.3g}x", interval)
        if self._chosen.quality is not None:
            for metric in self._chosen.quality.accuracy:
                value, reference = (
                    shown(metric.metric, side) for side in (metric.package, metric.reference)
                )
                yield doc.Fact(metric.metric, value, f"{reference} in {metric.against}")

    def _speeds(self) -> Iterator[doc.Block]:
        by_inputs: dict[str, list[Speedup]] = {}
        for speedup in self.speedups:
            where = f"{speedup.inputs} inputs at {sizes_text(speedup.sizes)}"
            by_inputs.setdefault(where, []).append(speedup)
        for where, group in by_inputs.items():
            rows = []
            for speedup in group:
                low, high = speedup.low, speedup.high
                words = f"{speedup.times:.3g} times as fast as {speedup.over}"
                interval = (low, high)
                drawn = doc.Drawn(words, speedup.times, 1.0, interval, 1.0, is_bad=high < 1)
                rows.append(
                    (
                        speedup.over,
                        drawn,
                        f"{speedup.times:.3f}x ({low:.3f} to {high:.3f})",
                        speedup.p50_ms,
                        speedup.baseline_p50_ms,
                    )
                )
            columns = (
                "beside",
                doc.Column("times as fast, 95 % interval", doc.PAGE),
                "#speed (95 %)",
                "#p50, ms",
                "#its p50, ms",
            )
            yield doc.Table(f"speed, {where}", columns, rows, axis="ratios")

    def _proven(self) -> Iterator[doc.Block]:
        names = list(dict.fromkeys(m.metric for proof in self.proofs for m in proof.accuracy))
        rows = [
            (
                proof.package,
                proof.reference,
                proof.runs,
                proof.max_abs_error,
                None if proof.routing_agreement is None else doc.Share(proof.routing_agreement),
                *(_both_sides(proof, name) for name in names),
            )
            for proof in self.proofs
        ]
        columns: tuple[doc.Column | str, ...] = (
            "package",
            doc.Column("equal to", width="words"),
            "#runs",
            "#max abs error",
            "#same heads",
            *(f"#{name}" for name in names),
        )
        yield doc.Table("proof", columns, rows)


def _both_sides(proof: ProofRecord, name: str) -> str | None:
    for metric in proof.accuracy:
        if metric.metric == name:
            return f"{shown(name, metric.package)} ({shown(name, metric.reference)})"
    return None
