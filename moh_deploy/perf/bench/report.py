"""Report the speed of packages beside their baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.perf.bench.candidate import LEAST_RUNS, RoutingOverhead
from moh_deploy.perf.bench.findings import findings
from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.measured import METRICS, LayerWork, Measured, PackageWork
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import Ratio
from moh_deploy.report import document as doc
from moh_deploy.report.baseline.result import RatchetResult, baseline_section, baseline_suites
from moh_deploy.report.document import percent
from moh_deploy.report.report import Report, count, in_json, number
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.validate.reference.input_sets import RANDOM


@dataclass(frozen=True)
class BenchReport(Report):
    """The result of a benchmark.

    Attributes:
        schema_version: Of its JSON; docs/bench.schema.json describes it.
        results: Every candidate on every set of inputs; those of one set follow each other.
        work: What the packages skip; nothing for baselines.
        gates: What each gate says of each package on each set of inputs.
        samples_by: The dimension that counts samples; None where that is a fixed size.
        threads: Threads within an operator; None for the runtime's own choice.
        min_time_s: Seconds that the candidates ran on each set of inputs, all together.
        warmup_s: Seconds that they ran before, untimed.
        machine: Processor, cores and instruction set.
        runtime: Name and version of the runtime.
        kernels: The kernel library that the first package was given.
        ratchet: How the package compares with a baseline file; None without one, or if a gate did
            not pass, or something is computed wrongly.
        routing: What routing costs the first package on each set of inputs, if that was asked for.
        notes: What else a reader should know.
    """

    schema_version: Literal[1] = field(default=1, init=False)
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
    @in_json()
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
        failed = [gate for gate in self.gates if not gate.passed]
        if failed:
            more = f" ({len(failed) - 1} more did not pass)" if len(failed) > 1 else ""
            return ValidationError(f"{failed[0].sentence}{more}")
        wrong = [
            result for result in self.results if result.fault is not None and not result.is_baseline
        ]
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

    @property
    @in_json("findings")
    def _findings(self) -> tuple[str, ...]:
        return tuple(self.findings())

    def findings(self) -> Iterator[str]:
        """Return sentences on what it shows."""
        return findings(self.results, self.work, self.routing)

    def document(self) -> doc.Document:
        """Return what it says."""
        judged = (_gates(self),) if self.gates else ()
        return doc.Document(
            "bench",
            (*judged, *_latencies(self), *_work(self)),
            _verdict(self),
            facts=tuple(_facts(self)),
            findings=tuple(self.findings()),
            remarks=tuple(_remarks(self)),
            baseline=baseline_section(self.ratchet),
            suites=(_suite(self), *baseline_suites(self.ratchet)),
            warning=self.kernels.warning,
        )


_GATE_COLUMNS = (
    "gate",
    "candidate",
    "inputs",
    doc.Column("what was measured", width="long"),
    "verdict",
)
_SPEED_COLUMNS = (
    "candidate",
    "baseline",
    "times as fast, 95 % interval",
    "#speed",
    "#95 %",
    "verdict",
)
_WORK_COLUMNS = (
    "layer",
    "choice",
    "runs as",
    doc.Column("computed of dense", doc.PAGE),
    "#rows computed",
    "#rows of dense",
    "#computed",
    "#open gates",
    doc.Column("predicted to pay up to (open gates)", width="words"),
)
_EVERYDAY = ("p50", "p90", "p99")  # metrics that a terminal shows without being asked
_ABOUT_LINES = (
    "The share of runs that took no longer. Further left is faster; a steep line is steady."
)
_NO_LINES = "No data: the times of single runs were not kept."
_ABOUT_SPEEDS = (
    "How many times as fast as a baseline, run by run. The dot is the median, the thin line its"
    " 95 % interval, the upright line at 1 is the baseline."
)
_ABOUT_WORK = (
    "Rows of attention that are computed beside those of a dense layer, one for each head of each"
    " token. The upright line is the share of open gates: what no chosen head needs."
)


def _gates(report: BenchReport) -> doc.Section:
    rows: list[tuple[doc.Cell, ...]] = []
    for gate in report.gates:
        status = doc.Status("passed", True) if gate.passed else doc.Status("failed", False)
        # What was not measured did not pass.
        if gate.measured is None or gate.limit is None:
            status = doc.Status("not measured", False)
        rows.append((gate.gate, gate.contestant, gate.inputs, gate.reason, status))
    table = doc.Table("each gate on each package", _GATE_COLUMNS, rows)
    return doc.Section("Gates", (table,), shown=doc.PAGE)


def _verdict(report: BenchReport) -> doc.Verdict:
    held = tuple(gate.sentence for gate in report.gates if gate.passed)
    failed = tuple(gate.sentence for gate in report.gates if not gate.passed)
    candidates = len({result.contestant for result in report.results})
    said = [f"{count(candidates, 'candidate')}{' in turns' if candidates > 1 else ''}."]
    if report.gates:
        said.append(f"{len(held)} of {count(len(report.gates), 'gate')} passed.")
    if report.passed is None:
        word = "MEASURED"
        said.append("No gate was asked for: nothing is judged.")
    elif report.gates and (report.passed or failed):
        word = "GATES PASSED" if report.passed else "GATES FAILED"
    else:
        word = "NO WORSE THAN BEFORE" if report.passed else "WORSE THAN BEFORE"
    lines = tuple(map(_answer, report.results[:1]))
    return doc.Verdict(word, report.passed, " ".join(said), lines, held, failed)


def _answer(first: Measured) -> str:
    """Return the time and speeds of the first package on the first inputs."""
    parts = [f"p50 {number(first.latency.p50_ms)} ms at {sizes_text(first.sizes)}"]
    for name, found in first.ratios.items():
        low, high = 1 / found.high, 1 / found.low
        speed = f"{1 / found.value:.2f}x as fast as {name} (95 %: {low:.2f} to {high:.2f}"
        is_told = found.is_faster or found.is_slower
        parts.append(f"{speed})" if is_told else f"{speed}, no difference shown)")
    return f"{first.contestant}: {', '.join(parts)}"


def _suite(report: BenchReport) -> doc.CiSuite:
    """Return a test case for every gate, package and set of inputs, behind the verdict."""
    if report.failure is not None:
        verdict = doc.CiCase("bench", "verdict", "failure", report.failure.message)
    elif report.passed is None:
        why = "There is no gate: nothing could fail."
        verdict = doc.CiCase("bench", "verdict", "skipped", why)
    else:
        held = f"gates that hold: {len(report.gates)}" if report.gates else "nothing is worse"
        verdict = doc.CiCase("bench", "verdict", "passed", held)
    # The same gate may be asked for twice, and a name must not.
    cases = [
        doc.CiCase(
            "gates",
            f"{index}: {gate.gate} for {gate.contestant} on {gate.inputs} inputs",
            "passed" if gate.passed else "failure",
            gate.sentence,
        )
        for index, gate in enumerate(report.gates, start=1)
    ]
    kernels = ("kernels", report.kernels.describe())
    facts = (("machine", report.machine), ("runtime", report.runtime), kernels)
    return doc.CiSuite((verdict, *cases), facts=facts)


def _facts(report: BenchReport) -> Iterator[doc.Fact]:
    """Yield figures of the first package on the first inputs."""
    if not report.results:
        return
    first = report.results[0]
    where = f"{first.inputs} inputs at {sizes_text(first.sizes)}"
    yield doc.Fact("p50", f"{number(first.latency.p50_ms)} ms", where)
    # Tiles are for a glance: more than two baselines are in the table.
    for name, found in list(first.ratios.items())[:2]:
        interval = f"95 %: {1 / found.high:.3g} to {1 / found.low:.3g}"
        yield doc.Fact(f"speed over {name}", f"{1 / found.value:.3g}x", interval)
    rate = first.throughput
    shown = f"{rate:,.0f}/s" if rate >= 1000 else f"{number(rate)}/s"
    yield doc.Fact("throughput", shown, "runs" if report.samples_by is None else "samples")
    peak = first.fresh.peak_memory_bytes
    yield doc.Fact("peak memory", "unknown" if peak is None else f"{peak / 2**20:.0f} MiB")


def _remarks(report: BenchReport) -> Iterator[str]:
    """Yield sentences on how it was measured, and on what."""
    threads = "the runtime's" if report.threads is None else str(report.threads)
    yield (
        f"threads: {threads}; all candidates in turn for {report.min_time_s:g} s, after"
        f" {report.warmup_s:g} s of warm-up; load, first run and peak memory of a process each"
    )
    if any(result.inputs == RANDOM for result in report.results):
        yield (
            "random inputs: each element is one of the recorded input's, drawn by chance; heads"
            " that they open are not those of real inputs. --inputs FILE.npz measures on yours"
        )
    few = [result for result in report.results if result.latency.p99_ms is None]
    if few:
        least = min(row.latency.runs for row in few)
        yield (
            f"percentiles are left out of fewer than {LEAST_RUNS[90]} (p90) and"
            f" {LEAST_RUNS[99]} (p99) runs, the least were {count(least, 'run')}: raise"
            " --min-time"
        )
    yield f"{report.runtime} on {report.machine}"
    yield report.kernels.describe()
    yield from report.notes


def _latencies(report: BenchReport) -> Iterator[doc.Section]:
    """Yield a section on all candidates for each set of inputs."""
    # Those of one set of inputs follow each other in a report.
    grouped = groupby(report.results, lambda result: (result.inputs, result.sizes))
    for index, ((inputs, sizes), group) in enumerate(grouped):
        where, results = f"{inputs} inputs at {sizes_text(sizes)}", list(group)
        lines = tuple(
            doc.Line(
                result.contestant,
                f"{result.latency.runs} runs, p50 {result.latency.p50_ms:.3g} ms",
                result.latency.sorted_ms,
            )
            for result in results
            if result.latency.sorted_ms
        )
        blocks: list[doc.Block] = [doc.Text(_ABOUT_LINES if lines else _NO_LINES, shown=doc.PAGE)]
        blocks += [doc.LatencyChart(where, lines)] if lines else []
        blocks += _speeds(results, index)
        blocks.append(_times(report, where, results, index))
        yield doc.Section(f"Latency, {where}", tuple(blocks))


def _times(report: BenchReport, where: str, results: Sequence[Measured], index: int) -> doc.Table:
    """Return the times of each candidate, and how fast it is beside each baseline."""
    baselines = [result.contestant for result in results if result.is_baseline]
    titles = [
        # Where no dimension counts samples, a run is all that can be counted.
        doc.Column(
            "#runs/s" if name == "throughput" and report.samples_by is None else f"#{metric.title}",
            doc.EVERYWHERE if name in _EVERYDAY else doc.DETAILED,
        )
        for name, metric in METRICS.items()
    ]
    # A page draws speeds in a table of their own.
    speeds = [doc.Column(f"#speed / {name} (95 %)", doc.TEXT) for name in baselines]
    rows: list[tuple[doc.Cell, ...]] = []
    for result in results:
        metrics = [metric.cell(result) for metric in METRICS.values()]
        ratios = [result.ratios.get(name) for name in baselines]
        texts = [
            None if x is None else f"{1 / x.value:.3f}x ({1 / x.high:.3f} to {1 / x.low:.3f})"
            for x in ratios
        ]
        rows.append((result.contestant, result.latency.runs, *metrics, *texts))
    runs = doc.Column("#runs", doc.DETAILED)
    columns: list[doc.Column | str] = ["candidate", runs, *titles, *speeds]
    return doc.Table(where, columns, rows, f"times-{index}")


def _speeds(results: Sequence[Measured], index: int) -> tuple[doc.Block, ...]:
    """Draw how many times as fast as each baseline packages are; nothing without baselines."""
    rows = [
        _speed_row(result.contestant, name, found)
        for result in results
        if not result.is_baseline
        for name, found in result.ratios.items()
    ]
    if not rows:
        return ()
    table = doc.Table(
        "speed over baselines", _SPEED_COLUMNS, rows, f"speeds-{index}", doc.PAGE, "ratios"
    )
    return (doc.Text(_ABOUT_SPEEDS, shown=doc.PAGE), table)


def _speed_row(name: str, baseline: str, found: Ratio) -> tuple[doc.Cell, ...]:
    # Ratios are of times, speeds their inverse: the ends of the interval change places.
    speed, low, high = 1 / found.value, 1 / found.high, 1 / found.low
    words = f"{name}: {speed:.3g} times as fast as {baseline}, {low:.3g} to {high:.3g}"
    drawn = doc.Drawn(words, speed, 1.0, (low, high), bar_from=1.0, is_bad=found.is_slower)
    status = doc.Status("no difference shown", None)
    if found.is_faster or found.is_slower:
        status = doc.Status("faster", True) if found.is_faster else doc.Status("slower", False)
    return (name, baseline, drawn, f"{speed:.3f}x", f"{low:.3f} to {high:.3f}", status)


def _work(report: BenchReport) -> Iterator[doc.Section]:
    """Yield a section on the layers of each package for each set of inputs."""
    for index, work in enumerate(work for work in report.work if work.layers):
        where = f"{work.inputs} inputs at {sizes_text(work.sizes)}"
        computed = sum(layer.rows_computed for layer in work.layers)
        dense = sum(layer.rows_dense for layer in work.layers)
        share = doc.Share(computed / max(1, dense))
        total = ("all layers", None, None, None, computed, dense, share, None, None)
        rows = [*map(_work_row, work.layers), total]
        title = f"{work.contestant}: work, {where}"
        table = doc.Table(
            title, _WORK_COLUMNS, rows, f"work-{index}", shown=doc.DETAILED, axis="shares"
        )
        about = doc.Text(_ABOUT_WORK, shown=doc.PAGE)
        yield doc.Section(f"Skipped work, {work.contestant}, {where}", (about, table))


def _work_row(layer: LayerWork) -> tuple[doc.Cell, ...]:
    """Return what one layer skips."""
    computed = layer.rows_computed / max(1, layer.rows_dense)
    words = f"{layer.path}: {layer.rows_computed} of {layer.rows_dense} rows computed"
    pays = None
    if layer.break_even:  # `sparse 71.0 %, projected never; best here: sparse`
        limits = [f"{name} {percent(x) or 'never'}" for name, x in layer.break_even.items()]
        pays = f"{', '.join(limits)}; best here: {layer.predicted_fastest}"
    return (
        layer.path,
        layer.choice,
        layer.runs_as or "not replaced",
        doc.Drawn(words, computed, layer.active_share, bar_from=0.0, has_dot=False),
        layer.rows_computed,
        layer.rows_dense,
        doc.Share(computed),
        doc.Share(layer.active_share),
        pays,
    )
