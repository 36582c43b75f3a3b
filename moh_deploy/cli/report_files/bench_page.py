"""The page of `moh-deploy bench --html`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from moh_deploy.cli.report_files.bench_tables import gate_table, speed_table, work_table
from moh_deploy.cli.report_files.latency_chart import LatencyChart, latency_chart
from moh_deploy.cli.report_files.ratchet_table import ratchet_table
from moh_deploy.perf.bench.measured import Measured
from moh_deploy.perf.bench.report import BenchReport, gate_text
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.environment import environment
from moh_deploy.report.html.page import Fact, Run, Verdict, render
from moh_deploy.report.html.tables import Table, number
from moh_deploy.report.tables import count


@dataclass(frozen=True)
class _Group:
    """All contestants on one set of inputs."""

    title: str
    chart: LatencyChart | None
    speeds: Table | None
    times: Table


def bench_page(report: BenchReport, run: Run) -> str:
    """Return the report as one HTML page that needs nothing else."""
    work = [
        (f"{one.contestant}, {one.inputs} inputs at {sizes_text(one.sizes)}", work_table(one))
        for one in report.work
        if one.layers
    ]
    return render(
        "bench.html",
        kind="bench",
        run=run,
        verdict=_verdict(report),
        facts=_facts(report),
        gates=gate_table(report) if report.gates else None,
        ratchet=ratchet_table(report.ratchet),
        findings=list(report.findings()),
        groups=list(_groups(report)),
        work=work,
        remarks=list(report.facts()),
        environment=environment(report.kernels),
    )


def _verdict(report: BenchReport) -> Verdict:
    failed = tuple(gate_text(one) for one in report.gates if not one.passed)
    worse = () if report.ratchet is None else report.ratchet.reasons
    contestants = len({one.contestant for one in report.results})
    sentences = [f"{count(contestants, 'contestant')}{' in turns' if contestants > 1 else ''}."]
    if report.gates:
        passed = len(report.gates) - len(failed)
        sentences.append(f"{passed} of {count(len(report.gates), 'gate')} passed.")
    if report.ratchet is not None:
        sentences.append(f"{report.ratchet.summary}.")
    if report.passed is None:
        sentences.append("No gate was asked for: nothing is judged.")
    return Verdict(_word(report), report.passed, " ".join(sentences), (*failed, *worse))


def _word(report: BenchReport) -> str:
    if report.passed is None:
        return "MEASURED"
    if report.gates and (report.passed or not all(one.passed for one in report.gates)):
        return "GATES PASSED" if report.passed else "GATES FAILED"
    return "NO WORSE THAN BEFORE" if report.passed else "WORSE THAN BEFORE"


def _facts(report: BenchReport) -> list[Fact]:
    """Return figures of the first package on the first inputs."""
    if not report.results:
        return []
    first = report.results[0]
    where = f"{first.inputs} inputs at {sizes_text(first.sizes)}"
    peak = first.fresh.peak_memory_bytes
    rate = "runs" if report.samples_by is None else "samples"
    return [
        Fact("p50", f"{number(first.latency.p50_ms)} ms", where),
        *_speed_facts(first),
        Fact("throughput", _rate(first.throughput), rate),
        Fact("peak memory", "unknown" if peak is None else f"{peak / 2**20:.0f} MiB"),
    ]


def _speed_facts(first: Measured) -> Iterator[Fact]:
    for name, found in list(first.ratios.items())[:2]:
        interval = f"95 %: {1 / found.high:.3g} to {1 / found.low:.3g}"
        yield Fact(f"speed over {name}", f"{1 / found.value:.3g}x", interval)


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s" if a_second >= 1000 else f"{number(a_second)}/s"


def _groups(report: BenchReport) -> Iterator[_Group]:
    grouped = groupby(report.results, lambda one: (one.inputs, one.sizes))
    for times, ((inputs, sizes), group) in zip(report.times(speeds=False), grouped, strict=True):
        results: Sequence[Measured] = list(group)
        yield _Group(
            title=f"{inputs} inputs at {sizes_text(sizes)}",
            chart=latency_chart(results),
            speeds=speed_table(results),
            times=Table("all figures", times.columns, times.rows),
        )
