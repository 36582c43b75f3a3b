"""How fast packages ran, beside their baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from moh_deploy.errors import ValidationError
from moh_deploy.perf.bench.fixed_routing import RoutingOverhead
from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.latency import LEAST_RUNS
from moh_deploy.perf.bench.layer_work import LayerWork
from moh_deploy.perf.bench.measured import Measured
from moh_deploy.perf.bench.rows import WORK_COLUMNS, ReportTable, times_row, total_row, work_row
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report.baseline.result import RatchetResult
from moh_deploy.report.baseline.text import ratchet_texts
from moh_deploy.report.markdown_text import markdown_table, markdown_text
from moh_deploy.runtime.runner import KernelUse
from moh_deploy.validate.sized_inputs import RANDOM

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class PackageWork:
    """What the layers of a package skip on one set of inputs.

    Attributes:
        contestant: The package.
        inputs: `recorded`, `random`, or the file.
        sizes: Dimension sizes.
        layers: One each.
    """

    contestant: str
    inputs: str
    sizes: dict[str, int]
    layers: tuple[LayerWork, ...]


@dataclass(frozen=True)
class BenchReport:
    """One comparison.

    Attributes:
        results: Every contestant on every set of inputs; those of one set follow each other.
        work: What the packages skip; nothing for baselines.
        gates: What each gate says of each package on each set of inputs.
        samples_by: The dimension that counts samples; None where that is a fixed size.
        threads: Threads within an operator; None for ONNX Runtime's own choice.
        min_time_s: Seconds that the contestants ran on each set of inputs, all together.
        warmup_s: Seconds that they ran before, untimed.
        machine: Processor, cores and instruction set.
        runtime: Name and version of the runtime.
        kernels: The kernel library that the first package was given.
        ratchet: How the package compares with a baseline file; None without one, or if a gate did
            not pass, or something is computed wrongly.
        routing: What routing costs the first package on each set of inputs, if that was asked for.
        notes: What else a reader should know.
    """

    results: tuple[Measured, ...]
    work: tuple[PackageWork, ...]
    gates: tuple[GateResult, ...]
    samples_by: str | None
    threads: int | None
    min_time_s: float
    warmup_s: float
    machine: str
    runtime: str
    kernels: KernelUse
    ratchet: RatchetResult | None = None
    routing: tuple[RoutingOverhead, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether every gate was measured and holds, nothing is computed wrongly, and nothing is
        worse than in the baseline file; None without gate and file."""
        if self.failure is not None:
            return False
        return None if not self.gates and self.ratchet is None else True

    @property
    def failure(self) -> ValidationError | None:
        """The error that names the first gate that did not pass, or else what is computed wrongly,
        or what is worse than it was."""
        failed = [one for one in self.gates if not one.passed]
        if failed:
            more = f" ({len(failed) - 1} more did not pass)" if len(failed) > 1 else ""
            return ValidationError(f"{gate_text(failed[0])}{more}")
        wrong = [one for one in self.results if one.fault is not None and not one.is_baseline]
        if wrong:
            first = wrong[0]
            return ValidationError(
                f"{first.contestant} is not what the baseline file is of: {first.fault}"
            )
        return None if self.ratchet is None else self.ratchet.failure

    def raise_if_failed(self) -> None:
        """Raise ValidationError if it did not pass."""
        if self.failure is not None:
            raise self.failure

    def to_json(self) -> dict[str, object]:
        """Return the report in plain JSON types."""
        return {
            "schema_version": 1,
            "passed": self.passed,
            "gates": [asdict(one) for one in self.gates],
            "ratchet": None if self.ratchet is None else self.ratchet.to_json(),
            "results": [_result_json(one) for one in self.results],
            "work": [asdict(one) for one in self.work],
            "routing": [asdict(one) for one in self.routing],
            "samples_by": self.samples_by,
            "threads": self.threads,
            "min_time_s": self.min_time_s,
            "warmup_s": self.warmup_s,
            "machine": self.machine,
            "runtime": self.runtime,
            "kernels": self.kernels.to_json(),
            "findings": list(self.findings()),
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown: what was judged, tables with headings, and all else."""
        tables = map(_markdown, self._tables())
        judged, said = _bullets(self._judged()), _bullets((*self.findings(), *self.facts()))
        return "\n\n".join(filter(None, [judged, *tables, said])) + "\n"

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from moh_deploy.report.baseline.text import ratchet_lines
        from moh_deploy.report.tables import line, table, verdict

        tables = [table(*one) for one in self._tables()]
        gates = [verdict(one.passed, gate_text(one)) for one in self.gates]
        kept = () if self.ratchet is None else ratchet_lines(self.ratchet)
        lines = map(line, (*self.findings(), *self.facts()))
        return Group(*tables, *lines, *gates, *kept)

    def _tables(self) -> Iterator[ReportTable]:
        yield from self.times()
        for work in self.work:
            title = f"{work.contestant}: work, {work.inputs} inputs at {sizes_text(work.sizes)}"
            rows = [*map(work_row, work.layers), total_row(work.layers)]
            yield ReportTable(title, WORK_COLUMNS, rows)

    def times(self, *, speeds: bool = True) -> Iterator[ReportTable]:
        """Return a table of all contestants for each set of inputs, with `speeds` or without."""
        for (inputs, sizes), group in groupby(self.results, lambda one: (one.inputs, one.sizes)):
            yield self._times(f"{inputs} inputs at {sizes_text(sizes)}", list(group), speeds)

    def _times(self, title: str, results: Sequence[Measured], speeds: bool) -> ReportTable:
        baselines = [one.contestant for one in results if one.is_baseline and speeds]
        rate = "#runs/s" if self.samples_by is None else "#samples/s"
        columns = ["contestant", "#runs", "#p50 ms", "#p90 ms", "#p99 ms", "#mean ms", rate]
        columns += ["#CPU ms", "#busy", "#load ms", "#first run ms", "#peak MiB"]
        columns += [f"#speed / {name} (95 %)" for name in baselines]
        return ReportTable(title, columns, [times_row(one, baselines) for one in results])

    def _judged(self) -> Iterator[str]:
        yield from map(gate_text, self.gates)
        if self.ratchet is not None:
            yield from ratchet_texts(self.ratchet)

    def findings(self) -> Iterator[str]:
        """Return sentences on what it shows."""
        from moh_deploy.perf.bench.findings import findings

        return findings(self.results, self.work, self.routing)

    def facts(self) -> Iterator[str]:
        """Return sentences on how it was measured, and on what."""
        from moh_deploy.report.tables import count

        threads = "ONNX Runtime's" if self.threads is None else str(self.threads)
        yield (
            f"threads: {threads}; all contestants in turn for {self.min_time_s:g} s, after"
            f" {self.warmup_s:g} s of warm-up; load, first run and peak memory of a process each"
        )
        if any(one.inputs == RANDOM for one in self.results):
            yield (
                "random inputs: each element is one of the recorded input's, drawn by chance; heads"
                " that they open are not those of real inputs. --inputs FILE.npz measures on yours"
            )
        few = [one for one in self.results if one.latency.p99_ms is None]
        if few:
            least = min(one.latency.runs for one in few)
            yield (
                f"percentiles are left out of fewer than {LEAST_RUNS[90]} (p90) and"
                f" {LEAST_RUNS[99]} (p99) runs, the least were {count(least, 'run')}: raise"
                " --min-time"
            )
        yield f"{self.runtime} on {self.machine}"
        yield self.kernels.describe()
        yield from self.notes


def gate_text(one: GateResult) -> str:
    """Return a sentence: what was asked, of whom, and what was measured."""
    verb = "passed" if one.passed else "not measured" if one.measured is None else "failed"
    if one.limit is None:
        verb = "not measured"
    where = f"{one.contestant} on {one.inputs} inputs at {sizes_text(one.sizes)}"
    return f"gate '{one.gate}' {verb} for {where}: {one.reason}"


def _result_json(one: Measured) -> dict[str, object]:
    return {
        "contestant": one.contestant,
        "is_baseline": one.is_baseline,
        "inputs": one.inputs,
        "sizes": one.sizes,
        "samples": one.samples,
        **asdict(one.latency),
        "utilisation": one.latency.utilisation,
        "throughput": one.throughput,
        **asdict(one.fresh),
        "agreement": None if one.agreement is None else asdict(one.agreement),
        "fault": one.fault,
        "ratios": {name: asdict(found) for name, found in one.ratios.items()},
    }


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(one)}" for one in lines)


def _markdown(one: ReportTable) -> str:
    return "\n".join([f"### {markdown_text(one.title)}", *markdown_table(one.columns, one.rows)])
