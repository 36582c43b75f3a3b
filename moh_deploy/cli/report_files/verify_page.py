"""The page of `moh-deploy verify --html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.cli.report_files.accuracy_tables import Accuracy, accuracy
from moh_deploy.cli.report_files.error_rows import error_table, status
from moh_deploy.cli.report_files.heat_map import HeatMap, class_map, load_map
from moh_deploy.cli.report_files.margin_chart import MarginChart, margin_charts
from moh_deploy.cli.report_files.ratchet_table import ratchet_table
from moh_deploy.perf.environment import environment
from moh_deploy.report.html.page import Fact, Run, Verdict, render
from moh_deploy.report.html.tables import Cell, Status, Table, number, share
from moh_deploy.report.tables import count
from moh_deploy.runtime.layers_text import runs_as
from moh_deploy.validate.accuracy import MetricParity
from moh_deploy.validate.accuracy.show import shown
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from moh_deploy.validate.parity_text import layer_answer, output_answer, worst_layers, worst_outputs
from moh_deploy.validate.tolerances import Tolerance

_LAYER_COLUMNS = (
    "layer",
    "runs as",
    "worst vectors",
    "#same choice",
    "#Jaccard",
    "#unexplained flips",
    "#explained flips",
    "#smallest margin",
    "#gate error",
    "#tolerance",
    "#score error",
    "#tolerance",
    "#attention error",
    "#tolerance",
    "judged by",
    "verdict",
)
_OUTPUT_COLUMNS = (
    "output",
    "worst vectors",
    "#max abs error",
    "#relative",
    "#tolerance",
    "#noise floor",
    "verdict",
)
_RULE_COLUMNS = (
    "rule of",
    "#relative",
    "#near tie",
    "#behind a flip",
    "#times the floor",
    "#at one token",
    "#least",
    "reason",
)


@dataclass(frozen=True)
class _Comparison:
    """What is shown of a package and one reference."""

    reference: str
    status: Status
    has_routing: bool
    accuracy: Accuracy | None
    errors: Table
    loads: HeatMap
    class_loads: tuple[HeatMap, ...]
    margins: tuple[MarginChart, ...]
    tables: tuple[Table, ...]


def verify_page(report: ParityReport, run: Run) -> str:
    """Return the report on a package or engine as one HTML page that needs nothing else."""
    return render(
        "verify.html",
        kind="verify",
        run=run,
        verdict=_verdict(report),
        facts=_facts(report),
        ratchet=ratchet_table(report.ratchet),
        comparisons=list(map(_comparison, report.comparisons)),
        environment=environment(report.kernels),
    )


def _comparison(report: ParityReport) -> _Comparison:
    statistics = report.statistics
    return _Comparison(
        reference=report.reference,
        status=Status("equal", True) if report.equal else Status("not equal", False),
        has_routing=report.has_routing,
        accuracy=accuracy(report.accuracy),
        errors=error_table(report),
        loads=load_map(statistics.head_loads),
        class_loads=tuple(map(class_map, statistics.class_loads)),
        margins=tuple(margin_charts(statistics.margins)),
        tables=(_outputs(report), _layers(report), _rules(report)),
    )


def _verdict(report: ParityReport) -> Verdict:
    sentence = f"Compared with {report.reference}: {count(report.vector_sets, 'vector set')}."
    kept = report.ratchet
    notes = (*report.notes, *(() if kept is None else (kept.summary,)))
    if report.equal and kept is not None and kept.reasons:
        return Verdict("EQUAL, AND WORSE THAN BEFORE", False, sentence, kept.reasons, notes)
    return Verdict(report.answer, report.equal, sentence, report.reasons, notes)


def _facts(report: ParityReport) -> list[Fact]:
    return [
        *(
            Fact(one.metric, shown(one.metric, one.package), _of_reference(one))
            for one in report.accuracy
        ),
        Fact("max abs error", number(report.max_abs_error) or "–", "of outputs that are judged"),
        *_routing_facts(report),
        _layers_fact(report),
    ]


def _routing_facts(report: ParityReport) -> list[Fact]:
    agreement = report.routing_agreement
    if agreement is None or not report.layers:
        why = "no data" if report.has_routing else "not compared"
        return [Fact("routing agreement", why), Fact("flips", why)]
    explained = sum(one.excused_tokens for one in report.layers)
    unexplained = sum(one.flipped_tokens for one in report.layers)
    rate = share(agreement, digits=3) or "no data"
    return [
        Fact("routing agreement", rate, "of decisions that are no near-tie"),
        Fact("flips", f"{unexplained} unexplained", f"{explained} more explained by rounding"),
    ]


def _layers_fact(report: ParityReport) -> Fact:
    kernels = sum(run.runs_as == "kernel" for run in report.layer_runs)
    found = f"{kernels} of {len(report.layer_runs)}" if report.layer_runs else "there is none"
    return Fact("MoH layers on a kernel", found)


def _of_reference(one: MetricParity) -> str:
    return f"{shown(one.metric, one.reference)} in the reference: {one.verdict}"


def _outputs(report: ParityReport) -> Table:
    def row(one: OutputParity) -> Sequence[Cell]:
        figures = map(number, (one.max_abs_error, one.max_rel_error, one.tolerance, one.floor))
        return (one.name, one.vectors, *figures, status(output_answer(one)))

    rows = [row(one) for one in worst_outputs(report)]
    return Table("Outputs, worst vector set of each", _OUTPUT_COLUMNS, rows)


def _layers(report: ParityReport) -> Table:
    ways = {run.path: runs_as(run) for run in report.layer_runs}

    def row(one: LayerParity) -> Sequence[Cell]:
        return (
            one.path,
            ways.get(one.path),
            one.vectors,
            share(one.agreement),
            number(one.jaccard),
            one.flipped_tokens,
            one.excused_tokens,
            *map(number, (one.smallest_margin, one.gate_error, one.gate_tolerance)),
            *map(number, (one.score_error, one.score_tolerance)),
            *map(number, (one.attention_error, one.attention_tolerance)),
            one.judged_by,
            status(layer_answer(one)),
        )

    rows = [row(one) for one in worst_layers(report)]
    return Table("MoH layers, worst vector set of each", _LAYER_COLUMNS, rows)


def _rules(report: ParityReport) -> Table:
    def row(name: str, rule: Tolerance) -> Sequence[Cell]:
        figures = (rule.relative, rule.near_tie, rule.relative_after_flip)
        floor = (rule.floor_factor or None, rule.peak_factor or None, rule.least or None)
        return (name, *map(number, (*figures, *floor)), rule.reason)

    rows = [row(*one) for one in report.rules.items()]
    return Table(f"Rules that applied: {report.policy}", _RULE_COLUMNS, rows)
