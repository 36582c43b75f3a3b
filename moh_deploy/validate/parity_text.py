"""How a parity report looks to people: the worst of each output and layer, then the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

from rich.console import Group, RenderableType

from moh_deploy.report.baseline.text import ratchet_lines
from moh_deploy.report.tables import count, figure, heading, line, percent, table, verdict
from moh_deploy.runtime.layers_text import nodes_text, runs_as, runs_text
from moh_deploy.validate.accuracy.text import accuracy_tables

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport

Entry = TypeVar("Entry")
Answer = Literal["equal", "differs", "not judged", "no data"]

_MOST_REASONS = 10
_LAYER_COLUMNS = [
    "layer",
    "runs as",
    "vectors",
    "#same choice",
    "#Jaccard",
    "#flips unexplained",
    "#explained",
    "#gate error",
    "#tolerance",
    "#attention",
    "#tolerance",
    "judged by",
    "verdict",
]


def parity_tables(report: ParityReport) -> RenderableType:
    """Return tables of outputs and layers of each comparison, and the verdict."""
    return Group(*_parts(report))


def sides(report: ParityReport) -> str:
    """Return the two sides of one comparison in words."""
    return f"{report.subject or 'the runtime'} against {report.reference}"


def worst_outputs(report: ParityReport) -> list[OutputParity]:
    """Return the worst entry of each output."""
    return _worst_by((entry.name, _output_badness(entry), entry) for entry in report.outputs)


def worst_layers(report: ParityReport) -> list[LayerParity]:
    """Return the worst entry of each layer."""
    return _worst_by((entry.path, _layer_badness(entry), entry) for entry in report.layers)


def output_answer(entry: OutputParity) -> Answer:
    """Return what became of an output; what holds nothing or follows a flip is not equal."""
    if entry.reason is not None:
        return "differs"
    if entry.elements == 0:
        return "no data"
    return "not judged" if entry.tolerance is None else "equal"


def layer_answer(entry: LayerParity) -> Answer:
    """Return what became of a layer; where nothing could be judged it is not equal."""
    if entry.no_data:
        return "no data"
    return "equal" if entry.reason is None else "differs"


def _parts(report: ParityReport) -> Iterator[RenderableType]:
    for part in report.parts:
        yield heading(sides(part))
        yield from _tables(part)
        yield verdict(part.equal, _answer(part))
    if not report.parts:
        yield from _tables(report)
    yield verdict(report.equal, _summary(report))
    if report.ratchet is not None:
        yield from ratchet_lines(report.ratchet)


def _tables(report: ParityReport) -> Iterator[RenderableType]:
    yield table(
        "outputs, worst vector set of each",
        ["output", "vectors", "#max abs error", "#tolerance", "#noise floor", "verdict"],
        (
            (
                o.name,
                o.vectors,
                figure(o.max_abs_error),
                figure(o.tolerance),
                figure(o.floor),
                output_answer(o),
            )
            for o in worst_outputs(report)
        ),
    )
    if report.layers:
        yield table(
            "MoH layers, worst vector set of each",
            _LAYER_COLUMNS,
            (_layer_row(entry, report) for entry in worst_layers(report)),
        )
    yield from accuracy_tables(report.accuracy)
    for reason in report.reasons[:_MOST_REASONS]:
        yield verdict(False, reason)
    for note in report.notes:
        yield line(note)
    if len(report.reasons) > _MOST_REASONS:
        yield verdict(False, f"... and {len(report.reasons) - _MOST_REASONS} more")


def _summary(report: ParityReport) -> str:
    return (
        f"{_whole_answer(report)}\n"
        f"tolerances: {report.policy}; rules of {', '.join(report.rules) or 'nothing'}\n"
        f"{runs_text(report.layer_runs)}\n"
        f"{nodes_text(report.kernel_nodes, report.function_nodes)}\n"
        f"{report.kernels.describe()}"
    )


def _whole_answer(report: ParityReport) -> str:
    if not report.parts:
        subject = f"; compared: {report.subject}" if report.subject else ""
        sets = count(report.vector_sets, "vector set")
        return f"{_answer(report)}\n{sets}; reference: {report.reference}{subject}"
    equal = sum(part.equal for part in report.parts)
    return f"{report.answer}: {equal} of {count(len(report.parts), 'comparison')} agree"


def _answer(report: ParityReport) -> str:
    agreement = report.routing_agreement
    routing = "routing not compared" if agreement is None else f"routing agreement {agreement:.6g}"
    return f"{report.answer}: max abs error {report.max_abs_error:.3g}, {routing}"


def _layer_row(entry: LayerParity, report: ParityReport) -> tuple[object, ...]:
    ways = [runs_as(run) for run in report.layer_runs if run.path == entry.path]
    return (
        entry.path,
        ", ".join(ways),
        entry.vectors,
        percent(entry.agreement),
        figure(entry.jaccard),
        entry.flipped_tokens,
        _explained(entry),
        figure(entry.gate_error),
        figure(entry.gate_tolerance),
        figure(entry.attention_error),
        figure(entry.attention_tolerance),
        entry.judged_by,
        layer_answer(entry),
    )


def _explained(entry: LayerParity) -> str:
    """Return the count, with the largest margin among those flips."""
    if entry.flip_margin is None or not entry.excused_tokens:
        return str(entry.excused_tokens)
    return f"{entry.excused_tokens} (margins to {entry.flip_margin:.2g})"


def _worst_by(entries: Iterable[tuple[str, float, Entry]]) -> list[Entry]:
    """Return the worst entry of each name, names in order of appearance."""
    worst: dict[str, tuple[float, Entry]] = {}
    for name, badness, entry in entries:
        if name not in worst or badness > worst[name][0]:
            worst[name] = badness, entry
    return [entry for _, entry in worst.values()]


def _output_badness(entry: OutputParity) -> float:
    return _badness(entry.reason, entry.max_abs_error, entry.tolerance)


def _layer_badness(entry: LayerParity) -> float:
    if entry.no_data:
        return math.inf
    return max(
        _badness(entry.reason, entry.gate_error, entry.gate_tolerance),
        _badness(entry.reason, entry.score_error or 0.0, entry.score_tolerance),
        _badness(entry.reason, entry.attention_error or 0.0, entry.attention_tolerance),
    )


def _badness(reason: str | None, error: float, tolerance: float | None) -> float:
    """Return how far an entry is from being equal; one that is not comes before all that are."""
    if reason is not None:
        return math.inf
    return error / tolerance if tolerance else 0.0
