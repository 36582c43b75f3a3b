"""What a parity report says: the worst of each output and layer, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

from moh_deploy.report.baseline.document import baseline_section, baseline_suites
from moh_deploy.report.document import (
    EVERYWHERE,
    PAGE,
    ROOMY,
    Block,
    Cell,
    Column,
    Document,
    Drawn,
    Fact,
    Section,
    Share,
    Status,
    Table,
    Text,
    Verdict,
)
from moh_deploy.report.numbers import count, number, share
from moh_deploy.runtime.layers_text import nodes_text, runs_as, runs_text
from moh_deploy.validate.accuracy.document import accuracy_fact, accuracy_section
from moh_deploy.validate.parity_cases import parity_suites
from moh_deploy.validate.routing_drawings import routing_sections
from moh_deploy.validate.tolerances import Tolerance

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport

_Entry = TypeVar("_Entry")
EntryAnswer = Literal["equal", "differs", "not judged", "no data"]

_MOST_REASONS = 10

_OUTPUT_COLUMNS = (
    "output",
    Column("vectors", width="words"),
    "#max abs error",
    Column("#relative", PAGE),
    "#tolerance",
    Column("#noise floor", ROOMY),
    "verdict",
)
# Errors stand beside what they may be. Scores are in none of the narrow formats: where they decide,
# `judged by` says so, and the reason has the number.
_LAYER_COLUMNS = (
    "layer",
    Column("runs as", ROOMY),
    Column("vectors", width="words"),
    "#same choice",
    Column("#Jaccard", ROOMY),
    "#unexplained flips",
    "#explained",
    Column("#smallest margin", PAGE),
    "#gate error",
    "#tolerance",
    Column("#score error", PAGE),
    Column("#tolerance", PAGE),
    "#attention",
    "#tolerance",
    "judged by",
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
    Column("reason", width="long"),
)
_ERROR_COLUMNS = (
    "layer or output",
    "what",
    "error beside tolerance",
    "#error",
    "#tolerance",
    "verdict",
)
_ERRORS = (
    "errors, worst vector set of each: largest absolute one of gates and outputs, root mean square"
    " of scores, and of attention as a share of its size"
)
_ABOUT_ERRORS = (
    "Gates of each layer's router, then outputs. The dot is the largest absolute error, the upright"
    " line is the tolerance: what ends left of it is equal. The axis is logarithmic; an error of 0"
    " is at its left end."
)


def parity_document(report: ParityReport) -> Document:
    """Return what the report says of each comparison, and of all of them."""
    word: str = report.answer
    is_good = report.equal
    # What is worse than before does not pass, even where it is equal.
    if report.equal and report.ratchet is not None and report.ratchet.reasons:
        word, is_good = "EQUAL, AND WORSE THAN BEFORE", False
    verdict = Verdict(
        word,
        is_good,
        f"Compared with {report.reference}: {count(report.vector_sets, 'vector set')}.",
        tuple(_lines(report)),
        reasons=report.reasons,
        notes=report.notes,
        most_reasons=_MOST_REASONS,
    )
    return Document(
        "verify",
        tuple(map(_part, range(len(report.parts)), report.parts)) or tuple(_blocks(report, 0)),
        verdict,
        facts=tuple(_facts(report)),
        baseline=baseline_section(report.ratchet),
        suites=(*parity_suites(report), *baseline_suites(report.ratchet)),
    )


def output_answer(entry: OutputParity) -> EntryAnswer:
    """Return what became of an output; what holds nothing or follows a flip is not equal."""
    if entry.reason is not None:
        return "differs"
    if entry.elements == 0:
        return "no data"
    return "not judged" if entry.tolerance is None else "equal"


def layer_answer(entry: LayerParity) -> EntryAnswer:
    """Return what became of a layer; where nothing could be judged it is not equal."""
    if entry.no_data:
        return "no data"
    return "equal" if entry.reason is None else "differs"


def _status(answer: EntryAnswer) -> Status:
    return Status(answer, {"equal": True, "differs": False}.get(answer))


def _lines(report: ParityReport) -> Iterator[str]:
    if report.parts:
        equal = sum(part.equal for part in report.parts)
        yield f"{equal} of {count(len(report.parts), 'comparison')} agree"
    else:
        yield _figures(report)
        sets = count(report.vector_sets, "vector set")
        yield f"{sets}; reference: {report.reference}{_subject(report)}"
    yield f"tolerances: {report.policy}; rules of {', '.join(report.rules) or 'nothing'}"
    yield runs_text(report.layer_runs)
    yield nodes_text(report.kernel_nodes, report.function_nodes)
    yield report.kernels.describe()


def _figures(report: ParityReport) -> str:
    agreement = report.routing_agreement
    routing = "routing not compared" if agreement is None else f"routing agreement {agreement:.6g}"
    return f"max abs error {report.max_abs_error:.3g}, {routing}"


def _subject(report: ParityReport) -> str:
    return f"; compared: {report.subject}" if report.subject else ""


def _facts(report: ParityReport) -> Iterator[Fact]:
    yield from map(accuracy_fact, report.accuracy)
    yield Fact("max abs error", number(report.max_abs_error) or "–", "of outputs that are judged")
    agreement = report.routing_agreement
    if agreement is None or not report.layers:
        why = "no data" if report.has_routing else "not compared"
        yield from (Fact("routing agreement", why), Fact("flips", why))
    else:
        rate = share(agreement, digits=3) or "no data"
        yield Fact("routing agreement", rate, "of decisions that are no near-tie")
        unexplained = sum(layer.flipped_tokens for layer in report.layers)
        explained = sum(layer.excused_tokens for layer in report.layers)
        more = f"{explained} more explained by rounding"
        yield Fact("flips", f"{unexplained} unexplained", more)
    kernels = sum(run.runs_as == "kernel" for run in report.layer_runs)
    found = f"{kernels} of {len(report.layer_runs)}" if report.layer_runs else "there is none"
    yield Fact("MoH layers on a kernel", found)


def _part(index: int, report: ParityReport) -> Section:
    """Return one of several comparisons."""
    verdict = Verdict(
        report.answer,
        report.equal,
        lines=(f"{_figures(report)}{_subject(report)}",),
        reasons=report.reasons,
        notes=report.notes,
        most_reasons=_MOST_REASONS,
    )
    return Section(f"Against {report.reference}", tuple(_blocks(report, index)), verdict)


def _blocks(report: ParityReport, index: int) -> Iterator[Block]:
    """Yield what is said of a comparison; on a page it has a number of its own."""
    if report.accuracy:
        yield accuracy_section(report.accuracy, f"accuracy-{index}")
    errors = Table(
        _ERRORS,
        _ERROR_COLUMNS,
        list(_error_rows(report)),
        f"errors-{index}",
        axis="decades",
    )
    about = Text(_ABOUT_ERRORS)
    yield Section("Error, in order of execution", (about, errors), shown=PAGE)
    yield from routing_sections(report.statistics, index, has_routing=report.has_routing)
    rules = [_rule_row(*named) for named in report.rules.items()]
    tables = [
        Table("outputs, worst vector set of each", _OUTPUT_COLUMNS, list(_output_rows(report))),
        Table(
            "MoH layers, worst vector set of each",
            _LAYER_COLUMNS,
            list(_layer_rows(report)),
            shown=EVERYWHERE if report.layers else PAGE,
        ),
        Table(f"rules that applied: {report.policy}", _RULE_COLUMNS, rules, shown=PAGE),
    ]
    yield Section("Figures", tuple(tables))


def _output_rows(report: ParityReport) -> Iterator[tuple[Cell, ...]]:
    for entry in _worst_outputs(report):
        errors = (entry.max_abs_error, entry.max_rel_error, entry.tolerance, entry.floor)
        yield (entry.name, entry.vectors, *errors, _status(output_answer(entry)))


def _layer_rows(report: ParityReport) -> Iterator[tuple[Cell, ...]]:
    for entry in _worst_layers(report):
        yield (
            entry.path,
            # A module that is called twice is two layers of one path.
            ", ".join(runs_as(run) for run in report.layer_runs if run.path == entry.path),
            entry.vectors,
            Share(entry.agreement),
            entry.jaccard,
            entry.flipped_tokens,
            _explained(entry),
            entry.smallest_margin,
            entry.gate_error,
            entry.gate_tolerance,
            entry.score_error,
            entry.score_tolerance,
            entry.attention_error,
            entry.attention_tolerance,
            entry.judged_by,
            _status(layer_answer(entry)),
        )


def _explained(entry: LayerParity) -> str:
    """Return the count, with the largest margin among those flips."""
    if entry.flip_margin is None or not entry.excused_tokens:
        return str(entry.excused_tokens)
    return f"{entry.excused_tokens} (margins to {entry.flip_margin:.2g})"


def _rule_row(name: str, rule: Tolerance) -> tuple[Cell, ...]:
    floor = (rule.floor_factor or None, rule.peak_factor or None, rule.least or None)
    return (name, rule.relative, rule.near_tie, rule.relative_after_flip, *floor, rule.reason)


def _error_rows(report: ParityReport) -> Iterator[tuple[Cell, ...]]:
    """Yield the errors of each layer in the order in which they arise, then those of outputs."""
    for layer in _worst_layers(report):
        answer = layer_answer(layer)
        if layer.score_error is not None:
            yield _error_row(layer.path, "scores", layer.score_error, layer.score_tolerance, answer)
        yield _error_row(layer.path, "gates", layer.gate_error, layer.gate_tolerance, answer)
        if layer.attention_error is not None:
            error, limit = layer.attention_error, layer.attention_tolerance
            yield _error_row(layer.path, "attention", error, limit, answer)
    for output in _worst_outputs(report):
        error, limit = output.max_abs_error, output.tolerance
        yield _error_row(output.name, "output", error, limit, output_answer(output))


def _error_row(
    name: str, what: str, error: float, limit: float | None, answer: EntryAnswer
) -> tuple[Cell, ...]:
    words = f"{name}: error {number(error)}, tolerance {number(limit) or 'none'}"
    is_bad = limit is not None and error > limit
    # A tolerance of 0 has no place on a logarithmic axis.
    drawn = Drawn(words, error, limit or None, bar_from=0.0, is_bad=is_bad)
    return (name, what, drawn, error, limit, _status(answer))


def _worst_outputs(report: ParityReport) -> list[OutputParity]:
    return _worst_by((entry.name, _output_badness(entry), entry) for entry in report.outputs)


def _worst_layers(report: ParityReport) -> list[LayerParity]:
    return _worst_by((entry.path, _layer_badness(entry), entry) for entry in report.layers)


def _worst_by(entries: Iterable[tuple[str, float, _Entry]]) -> list[_Entry]:
    """Return the worst entry of each name, names in order of appearance."""
    worst: dict[str, tuple[float, _Entry]] = {}
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
    # Without a tolerance (behind an explained flip) it is not judged, and comes last.
    return error / tolerance if tolerance else 0.0
