"""The report of a comparison: its result, and the page that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from moh_deploy.report.baseline.result import baseline_section, baseline_suites
from moh_deploy.report.document import (
    EVERYWHERE,
    PAGE,
    ROOMY,
    Block,
    Cell,
    CiCase,
    CiOutcome,
    CiSuite,
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
from moh_deploy.report.report import Report
from moh_deploy.runtime.layers_text import nodes_text, runs_as, runs_text
from moh_deploy.validate.accuracy.document import accuracy_case, accuracy_fact, accuracy_section
from moh_deploy.validate.compare.checks import Check
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity, ParityResult
from moh_deploy.validate.compare.routing_drawings import routing_sections
from moh_deploy.validate.compare.routing_statistics import joined
from moh_deploy.validate.compare.tolerances import Tolerance

# What a parity report says: the worst of each output and layer, and the verdict.
#
# As test cases for a CI, every output and layer is one: what was measured and not judged is
# skipped, with the reason; what could not be compared failed.

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
_LAYER_CELLS: tuple[tuple[str | Column, Callable[[LayerParity, ParityResult], Cell]], ...] = (
    ("layer", lambda layer, _: layer.path),
    (Column("runs as", ROOMY), lambda layer, report: _runs_as(layer.path, report)),
    (Column("vectors", width="words"), lambda layer, _: layer.vectors),
    ("#same choice", lambda layer, _: Share(layer.agreement)),
    (Column("#Jaccard", ROOMY), lambda layer, _: layer.jaccard),
    ("#unexplained flips", lambda layer, _: layer.flipped_tokens),
    ("#explained", lambda layer, _: _explained(layer)),
    (Column("#smallest margin", PAGE), lambda layer, _: layer.smallest_margin),
    ("#gate error", lambda layer, _: layer.gate_error),
    ("#tolerance", lambda layer, _: layer.gate_tolerance),
    (Column("#score error", PAGE), lambda layer, _: layer.score_error),
    (Column("#tolerance", PAGE), lambda layer, _: layer.score_tolerance),
    ("#attention", lambda layer, _: layer.attention_error),
    ("#tolerance", lambda layer, _: layer.attention_tolerance),
    ("judged by", lambda layer, _: layer.judged_by),
    ("verdict", lambda layer, report: _status(layer_answer(layer), report)),
)
"""Of each layer: the head of a column, and what stands in it."""
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


def parity_document(report: ParityResult) -> Document:
    """Return what the report says of each comparison, and of all of them."""
    word, is_good = report.answer, report.equal
    # What is worse than before does not pass, even where it is equal.
    if report.equal and report.ratchet is not None and report.ratchet.reasons:
        word, is_good = f"{word}, AND WORSE THAN BEFORE", False
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
        tuple(map(_part, report.parts, range(len(report.parts)))) or tuple(_blocks(report, 0)),
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


def _status(answer: EntryAnswer, report: ParityResult) -> Status:
    word = "within tolerance" if answer == "equal" and report.is_in_integers else answer
    return Status(word, {"equal": True, "differs": False}.get(answer))


def _lines(report: ParityResult) -> Iterator[str]:
    if report.parts:
        equal = sum(part.equal for part in report.parts)
        yield f"{equal} of {count(len(report.parts), 'comparison')} agree"
    yield _figures(report)
    for part in report.comparisons:
        sets = count(part.vector_sets, "vector set")
        yield f"{sets}; reference: {part.reference}{_subject(part)}"
    yield from comparison_lines(report)
    yield f"tolerances: {report.policy}; rules of {', '.join(report.rules) or 'nothing'}"
    yield runs_text(report.layer_runs)
    yield nodes_text(report.kernel_nodes, report.function_nodes)
    yield report.kernels.describe()


def comparison_lines(report: ParityResult, *, with_quality: bool = True) -> Iterator[str]:
    """Yield how far a package in int8 or int4 agrees, and what each check found."""
    for fact in _agreement_facts(report, with_quality=with_quality):
        yield f"{fact.name}: {fact.value} {fact.note}"
    yield from (f"{check.name}: {check.verdict}: {check.measured}" for check in report.checks)


def _figures(report: ParityResult) -> str:
    agreement = report.routing_agreement
    routing = "routing not compared" if agreement is None else f"routing agreement {agreement:.6g}"
    return f"max abs error {report.max_abs_error:.3g}, {routing}"


def _subject(report: ParityResult) -> str:
    return f"; compared: {report.subject}" if report.subject else ""


def _facts(report: ParityResult) -> Iterator[Fact]:
    yield from map(accuracy_fact, report.accuracy)
    yield from _agreement_facts(report)
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


def _part(report: ParityResult, index: int) -> Section:
    # What the first one says of agreement stands beside the verdict on all.
    lines = comparison_lines(report, with_quality=False) if index else ()
    return comparison_section(report, lines, index)


def comparison_section(report: ParityResult, lines: Iterable[str], index: int = 0) -> Section:
    """Return one comparison among other things; on a page it has a number of its own."""
    verdict = Verdict(
        report.answer,
        report.equal,
        lines=(f"{_figures(report)}{_subject(report)}", *lines),
        reasons=report.reasons,
        notes=report.notes,
        most_reasons=_MOST_REASONS,
    )
    return Section(f"Against {report.reference}", tuple(_blocks(report, index)), verdict)


def _blocks(report: ParityResult, index: int) -> Iterator[Block]:
    """Yield what is said of a comparison; on a page it has a number of its own."""
    if report.accuracy:
        yield accuracy_section(report.accuracy, f"accuracy-{index}")
    rows = list(_error_rows(report))
    errors = Table(_ERRORS, _ERROR_COLUMNS, rows, f"errors-{index}", axis="decades")
    about = Text(_ABOUT_ERRORS)
    yield Section("Error, in order of execution", (about, errors), shown=PAGE)
    yield from routing_sections(report.statistics, index, has_routing=report.has_routing)
    # A terminal has room for the tables of one comparison, and of those that differ.
    shown = EVERYWHERE if not index or not report.equal else PAGE
    rules = [_rule_row(*named) for named in report.rules.items()]
    tables = [
        Table(
            "outputs, worst vector set of each",
            _OUTPUT_COLUMNS,
            list(_output_rows(report)),
            shown=shown,
        ),
        Table(
            "MoH layers, worst vector set of each",
            tuple(head for head, _ in _LAYER_CELLS),
            [
                [cell(worst_layer, report) for _, cell in _LAYER_CELLS]
                for worst_layer in _worst_layers(report)
            ],
            shown=shown if report.layers else PAGE,
        ),
        Table(f"rules that applied: {report.policy}", _RULE_COLUMNS, rules, shown=PAGE),
    ]
    yield Section("Figures", tuple(tables))


def _output_rows(report: ParityResult) -> Iterator[tuple[Cell, ...]]:
    for entry in _worst_outputs(report):
        errors = (entry.max_abs_error, entry.max_rel_error, entry.tolerance, entry.floor)
        yield (entry.name, entry.vectors, *errors, _status(output_answer(entry), report))


def _runs_as(path: str, report: ParityResult) -> str:
    # A module that is called twice is two layers of one path.
    return ", ".join(runs_as(run) for run in report.layer_runs if run.path == path)


def _explained(entry: LayerParity) -> str:
    """Return the count, with the largest margin among those flips."""
    if entry.flip_margin is None or not entry.excused_tokens:
        return str(entry.excused_tokens)
    return f"{entry.excused_tokens} (margins to {entry.flip_margin:.2g})"


def _rule_row(name: str, rule: Tolerance) -> tuple[Cell, ...]:
    floor = (rule.floor_factor or None, rule.peak_factor or None, rule.least or None)
    return (name, rule.relative, rule.near_tie, rule.relative_after_flip, *floor, rule.reason)


def _error_rows(report: ParityResult) -> Iterator[tuple[Cell, ...]]:
    """Yield the errors of each layer in the order in which they arise, then those of outputs."""
    for layer in _worst_layers(report):
        answer = _status(layer_answer(layer), report)
        if layer.score_error is not None:
            yield _error_row(layer.path, "scores", layer.score_error, layer.score_tolerance, answer)
        yield _error_row(layer.path, "gates", layer.gate_error, layer.gate_tolerance, answer)
        if layer.attention_error is not None:
            error, limit = layer.attention_error, layer.attention_tolerance
            yield _error_row(layer.path, "attention", error, limit, answer)
    for output in _worst_outputs(report):
        error, limit = output.max_abs_error, output.tolerance
        answer = _status(output_answer(output), report)
        yield _error_row(output.name, "output", error, limit, answer)


def _error_row(
    name: str, what: str, error: float, limit: float | None, answer: Status
) -> tuple[Cell, ...]:
    words = f"{name}: error {number(error)}, tolerance {number(limit) or 'none'}"
    is_bad = limit is not None and error > limit
    # A tolerance of 0 has no place on a logarithmic axis.
    drawn = Drawn(words, error, limit or None, bar_from=0.0, is_bad=is_bad)
    return (name, what, drawn, error, limit, answer)


def _worst_outputs(report: ParityResult) -> list[OutputParity]:
    return _worst_by(
        (entry.name, _badness(entry.reason, entry.max_abs_error, entry.tolerance), entry)
        for entry in report.outputs
    )


def _worst_layers(report: ParityResult) -> list[LayerParity]:
    return _worst_by((entry.path, _layer_badness(entry), entry) for entry in report.layers)


def _worst_by(entries: Iterable[tuple[str, float, _Entry]]) -> list[_Entry]:
    """Return the worst entry of each name, names in order of appearance."""
    worst: dict[str, tuple[float, _Entry]] = {}
    for name, badness, entry in entries:
        if name not in worst or badness > worst[name][0]:
            worst[name] = badness, entry
    return [entry for _, entry in worst.values()]


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


def parity_suites(report: ParityResult) -> Iterator[CiSuite]:
    """Yield a suite for every comparison: its verdict, metrics, outputs and layers."""
    for part in report.comparisons:
        facts = {"subject": part.subject, "reference": part.reference, "policy": part.policy}
        facts["kernels"] = part.kernels.describe()
        facts["verdict"] = part.answer
        facts |= {fact.name: f"{fact.value} {fact.note}" for fact in _agreement_facts(part)}
        # CIs tell suites apart by their names alone.
        against = part.reference if report.parts else ""
        cases = tuple(_cases(part))
        yield CiSuite(cases, against=against, facts=tuple(facts.items()), notes=part.notes)


def _cases(report: ParityResult) -> Iterator[CiCase]:
    verdict: CiOutcome = "passed" if report.equal else "failure"
    compared = len(report.accuracy) + len(report.outputs) + len(report.layers)
    message = f"{report.answer}: {compared} comparisons" if report.equal else report.reasons[0]
    yield CiCase("verify", "verdict", verdict, message)
    yield from map(accuracy_case, report.accuracy)
    yield from map(_check_case, report.checks)
    yield from map(_output_case, report.outputs)
    yield from map(_layer_case, report.layers)
    # Skipped, not left out: a CI that counts cases sees that routing was not compared.
    if not report.has_routing:
        yield CiCase("layers", "routing", "skipped", "The reference holds no gates.")


def _check_case(entry: Check) -> CiCase:
    outcome: CiOutcome = "passed" if entry.reason is None else "failure"
    return CiCase("checks", entry.name, outcome, f"{entry.verdict}: {entry.measured}")


def _output_case(entry: OutputParity) -> CiCase:
    name = f"{entry.name} [{entry.vectors}]"
    measured = f"max abs error {entry.max_abs_error:.3g}"
    if entry.reason is not None:
        return CiCase("outputs", name, "failure", entry.reason)
    if entry.elements == 0:
        return CiCase("outputs", name, "skipped", "It is empty: no data.")
    if entry.tolerance is None:
        return CiCase("outputs", name, "skipped", f"{measured}, behind an explained flip")
    return CiCase("outputs", name, "passed", f"{measured}, tolerance {entry.tolerance:.3g}")


def _layer_case(entry: LayerParity) -> CiCase:
    name = f"{entry.path} [{entry.vectors}]"
    if entry.reason is not None:
        return CiCase("layers", name, "failure", entry.reason)
    if entry.no_data:
        return CiCase("layers", name, "skipped", "No token was left to compare: no data.")
    return CiCase("layers", name, "passed", ", ".join(_measured(entry)))


def _measured(entry: LayerParity) -> Iterator[str]:
    yield f"{entry.equal_decisions} of {entry.decisions} clear decisions are equal"
    yield f"gate error {entry.gate_error:.3g}"
    if entry.score_error is not None:
        yield f"score error {entry.score_error:.3g}, tolerance {entry.score_tolerance:.3g}"
    if entry.attention_error is not None:
        limit = entry.attention_tolerance
        yield f"attention error {entry.attention_error:.3g}, tolerance {limit:.3g}"


def _agreement_facts(report: ParityResult, *, with_quality: bool = True) -> Iterator[Fact]:
    """Yield how far a package in int8 or int4 agrees with its reference; of others nothing.

    Its tolerance says how far rounding moves such weights, and nothing of quality.
    """
    if not report.is_in_integers:
        return
    for name, top1_agreement in report.top_1.items():
        same = share(top1_agreement.same / top1_agreement.of) if top1_agreement.of else None
        yield Fact(
            "top-1 agreement",
            same or "no data",
            f"of {count(top1_agreement.of, 'row')} of '{name}'",
        )
    if report.flips is not None:
        yield Fact("other heads", str(report.flips.tokens), f"of {report.flips.of} tokens")
    asked = report.accuracy or any(check.asked for check in report.checks)
    if with_quality and not asked:
        how = "--labels or --within, with --inputs of your own, measures it"
        yield Fact("quality", "not measured", f"({how})")


@dataclass(frozen=True)
class ParityReport(ParityResult, Report):
    """Whether a runtime computes what the reference computed; see `ParityResult`."""

    def document(self) -> Document:
        """Return what it says of each comparison, and of all of them."""
        return parity_document(self)


def combined(reports: Sequence[ParityReport], bodies: ParityReport | None = None) -> ParityReport:
    """Join the reports of several comparisons by one runner.

    Args:
        reports: At least one.
        bodies: The comparison of the function bodies with some of the same runs, which are counted
            once; None if there was none.
    """
    first, *others = reports
    if not others and bodies is None:
        return first
    parts = (*reports, *([] if bodies is None else [bodies]))
    return replace(
        first,
        reference="; ".join(dict.fromkeys(report.reference for report in reports)),
        vector_sets=sum(report.vector_sets for report in reports),
        outputs=tuple(output for part in parts for output in part.outputs),
        layers=tuple(layer for part in parts for layer in part.layers),
        has_routing=any(report.has_routing for report in reports),
        rules={name: rule for part in parts for name, rule in part.rules.items()},
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        statistics=joined(report.statistics for report in reports),
        parts=parts,
        accuracy=tuple(metric for report in reports for metric in report.accuracy),
        checks=tuple(check for report in reports for check in report.checks),
    )
