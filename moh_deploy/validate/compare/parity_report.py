"""The report of a comparison: the worst of each output and layer, the verdict, test cases for a CI.

Every output and layer is a test case: what was measured and not judged is skipped, with the reason;
what could not be compared failed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from moh_deploy.report import document as doc
from moh_deploy.report.baseline.result import baseline_section, baseline_suites
from moh_deploy.report.report import Report, count, number, share, shown_verdict
from moh_deploy.runtime.layers_text import nodes_text, runs_as, runs_text
from moh_deploy.validate.accuracy.judge import accuracy_case, accuracy_fact, accuracy_section
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity, ParityResult
from moh_deploy.validate.compare.routing_statistics import joined, routing_sections
from moh_deploy.validate.compare.tolerances import Tolerance

_MOST_REASONS = 10
_Entry = TypeVar("_Entry")
_Answer = Literal["equal", "differs", "not judged", "no data"]
_Head = str | doc.Column


@dataclass(frozen=True)
class ParityReport(ParityResult, Report):
    """The comparison of a runtime with the reference; see `ParityResult`."""

    def document(self) -> doc.Document:
        """Return what it says of each comparison, and of all of them."""
        word, is_good = self.answer, self.equal
        # What is worse than before does not pass, even where it is equal.
        if self.equal and self.ratchet is not None and self.ratchet.reasons:
            word, is_good = f"{word}, AND WORSE THAN BEFORE", False
        sentence = f"Compared with {self.reference}: {count(self.vector_sets, 'vector set')}."
        parts = []
        for index, part in enumerate(self.parts):
            # What the first one says of agreement stands beside the verdict on all.
            lines = comparison_lines(part, with_quality=False) if index else ()
            parts.append(comparison_section(part, lines, index))
        return doc.Document(
            "verify",
            tuple(parts) or tuple(_blocks(self, 0)),
            _verdict(self, word, is_good, _lines(self), sentence),
            facts=tuple(_facts(self)),
            baseline=baseline_section(self.ratchet),
            suites=(*_suites(self), *baseline_suites(self.ratchet)),
            warning=self.kernels.warning,
        )


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


def comparison_section(report: ParityResult, lines: Iterable[str], index: int = 0) -> doc.Section:
    """Return one comparison among other things; on a page it has a number of its own."""
    lines = (f"{_figures(report)}{_subject(report)}", *lines)
    verdict = _verdict(report, report.answer, report.equal, lines)
    return doc.Section(f"Against {report.reference}", tuple(_blocks(report, index)), verdict)


def comparison_lines(report: ParityResult, *, with_quality: bool = True) -> Iterator[str]:
    """Yield how far a package in few bits agrees, and what each check found."""
    for fact in _agreement_facts(report, with_quality=with_quality):
        yield f"{fact.name}: {fact.value} {fact.note}"
    yield from (
        f"{check.name}: {shown_verdict(check.verdict)}: {check.measured}" for check in report.checks
    )


def _verdict(
    report: ParityResult, word: str, is_good: bool, lines: Iterable[str], sentence: str = ""
) -> doc.Verdict:
    return doc.Verdict(
        word,
        is_good,
        sentence,
        tuple(lines),
        reasons=report.reasons,
        notes=report.notes,
        most_reasons=_MOST_REASONS,
    )


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


def _figures(report: ParityResult) -> str:
    agreement = report.routing_agreement
    routing = "routing not compared" if agreement is None else f"routing agreement {agreement:.6g}"
    return f"max abs error {report.max_abs_error:.3g}, {routing}"


def _subject(report: ParityResult) -> str:
    return f"; compared: {report.subject}" if report.subject else ""


def _facts(report: ParityResult) -> Iterator[doc.Fact]:
    yield from map(accuracy_fact, report.accuracy)
    yield from _agreement_facts(report)
    error = number(report.max_abs_error) or "–"
    yield doc.Fact("max abs error", error, "of outputs that are judged")
    agreement = report.routing_agreement
    if agreement is None or not report.layers:
        why = "no data" if report.has_routing else "not compared"
        yield from (doc.Fact("routing agreement", why), doc.Fact("flips", why))
    else:
        rate = share(agreement, digits=3) or "no data"
        yield doc.Fact("routing agreement", rate, "of decisions that are no near-tie")
        unexplained = sum(layer.flipped_tokens for layer in report.layers)
        explained = sum(layer.excused_tokens for layer in report.layers)
        more = f"{explained} more explained by rounding"
        yield doc.Fact("flips", f"{unexplained} unexplained", more)
    kernels = sum(run.runs_as == "kernel" for run in report.layer_runs)
    found = f"{kernels} of {len(report.layer_runs)}" if report.layer_runs else "no layer"
    yield doc.Fact("MoH layers on a kernel", found)


def _agreement_facts(report: ParityResult, *, with_quality: bool = True) -> Iterator[doc.Fact]:
    """Yield how far a package in few bits agrees with its reference; of others nothing.

    Its tolerance says how far rounding moves such weights, and nothing of quality.
    """
    if not report.in_few_bits:
        return
    for name, rows in report.top_1.items():
        same = share(rows.same / rows.of) if rows.of else None
        note = f"of {count(rows.of, 'row')} of '{name}'"
        yield doc.Fact("top-1 agreement", same or "no data", note)
    if report.flips is not None:
        yield doc.Fact("other heads", str(report.flips.tokens), f"of {report.flips.of} tokens")
    asked = report.accuracy or any(check.asked for check in report.checks)
    if with_quality and not asked:
        how = "--labels or --within, with --inputs of your own, measures it"
        yield doc.Fact("quality", "not measured", f"({how})")


_ABOUT_ERRORS = (
    "Gates of each layer's router, then outputs. The dot is the largest absolute error, the upright"
    " line is the tolerance: what ends left of it is equal. The axis is logarithmic; an error of 0"
    " is at its left end."
)
_ERRORS = (
    "errors, worst vector set of each: largest absolute one of gates and outputs, root mean square"
    " of scores, and of attention as a share of its size"
)
_ERROR_HEADS = ("layer or output", "what", "error beside tolerance", "#error", "#tolerance")

# Of each table: the head of a column, and the cell that stands in it. Errors stand beside what they
# may be. Scores are in none of the narrow formats: where they decide, `judged by` says so, and the
# reason has the number.
_OUTPUT_CELLS: tuple[tuple[_Head, Callable[[OutputParity, ParityResult], doc.Cell]], ...] = (
    ("output", lambda output, _: output.name),
    (doc.Column("vectors", width="words"), lambda output, _: output.vectors),
    ("#max abs error", lambda output, _: output.max_abs_error),
    (doc.Column("#relative", doc.PAGE), lambda output, _: output.max_rel_error),
    ("#tolerance", lambda output, _: output.tolerance),
    (doc.Column("#noise floor", doc.ROOMY), lambda output, _: output.floor),
    ("verdict", lambda output, report: _status(output, report)),
)
_LAYER_CELLS: tuple[tuple[_Head, Callable[[LayerParity, ParityResult], doc.Cell]], ...] = (
    ("layer", lambda layer, _: layer.path),
    (
        doc.Column("runs as", doc.ROOMY),
        lambda layer, report: ", ".join(
            # A module that is called twice is two layers of one path.
            runs_as(run)
            for run in report.layer_runs
            if run.path == layer.path
        ),
    ),
    (doc.Column("vectors", doc.DETAILED, "words"), lambda layer, _: layer.vectors),
    ("#same choice", lambda layer, _: doc.Share(layer.agreement)),
    (doc.Column("#Jaccard", doc.ROOMY), lambda layer, _: layer.jaccard),
    ("#unexplained flips", lambda layer, _: layer.flipped_tokens),
    (doc.Column("#explained", doc.DETAILED), lambda layer, _: _explained(layer)),
    (doc.Column("#smallest margin", doc.PAGE), lambda layer, _: layer.smallest_margin),
    ("#gate error", lambda layer, _: layer.gate_error),
    ("#tolerance", lambda layer, _: layer.gate_tolerance),
    (doc.Column("#score error", doc.PAGE), lambda layer, _: layer.score_error),
    (doc.Column("#tolerance", doc.PAGE), lambda layer, _: layer.score_tolerance),
    (doc.Column("#attention", doc.DETAILED), lambda layer, _: layer.attention_error),
    (doc.Column("#tolerance", doc.DETAILED), lambda layer, _: layer.attention_tolerance),
    (doc.Column("judged by", doc.DETAILED), lambda layer, _: layer.judged_by),
    ("verdict", lambda layer, report: _status(layer, report)),
)
_RULE_CELLS: tuple[tuple[_Head, Callable[[tuple[str, Tolerance], ParityResult], doc.Cell]], ...] = (
    ("rule of", lambda rule, _: rule[0]),
    ("#relative", lambda rule, _: rule[1].relative),
    ("#near tie", lambda rule, _: rule[1].near_tie),
    ("#behind a flip", lambda rule, _: rule[1].relative_after_flip),
    ("#times the floor", lambda rule, _: rule[1].floor_factor or None),
    ("#at one token", lambda rule, _: rule[1].peak_factor or None),
    ("#least", lambda rule, _: rule[1].least or None),
    (doc.Column("reason", width="long"), lambda rule, _: rule[1].reason),
)


def _blocks(report: ParityResult, index: int) -> Iterator[doc.Block]:
    """Yield what is said of a comparison; on a page it has a number of its own."""
    if report.accuracy:
        yield accuracy_section(report.accuracy, f"accuracy-{index}")
    outputs, layers = _worst(report.outputs), _worst(report.layers)
    every: list[OutputParity | LayerParity] = [*layers, *outputs]
    rows = [_error_row(*error, report) for entry in every for error in _errors(entry)]
    heads = (*_ERROR_HEADS, "verdict")
    errors = doc.Table(_ERRORS, heads, rows, f"errors-{index}", axis="decades")
    blocks = (doc.Text(_ABOUT_ERRORS), errors)
    yield doc.Section("Error, in order of execution", blocks, shown=doc.PAGE)
    yield from routing_sections(report.statistics, index, has_routing=report.has_routing)
    # A comment has room for the tables of one comparison, a terminal for those that differ: of an
    # equal one the answer says enough.
    shown = doc.EVERYWHERE if not report.equal else doc.PAGE if index else doc.DETAILED

    def table(
        caption: str,
        cells: Sequence[tuple[_Head, Callable[[_Entry, ParityResult], doc.Cell]]],
        entries: Iterable[_Entry],
        shown: frozenset[doc.Format],
    ) -> doc.Table:
        rows = [[cell(entry, report) for _, cell in cells] for entry in entries]
        return doc.Table(caption, tuple(head for head, _ in cells), rows, shown=shown)

    of_layers = shown if report.layers else doc.PAGE
    rules = f"rules that applied: {report.policy}"
    tables = (
        table("outputs, worst vector set of each", _OUTPUT_CELLS, outputs, shown),
        table("MoH layers, worst vector set of each", _LAYER_CELLS, layers, of_layers),
        table(rules, _RULE_CELLS, report.rules.items(), doc.PAGE),
    )
    yield doc.Section("Figures", tables)


def _explained(entry: LayerParity) -> str:
    """Return the count, with the largest margin among those flips."""
    if entry.flip_margin is None or not entry.excused_tokens:
        return str(entry.excused_tokens)
    return f"{entry.excused_tokens} (margins to {entry.flip_margin:.2g})"


def _answer(entry: OutputParity | LayerParity) -> _Answer:
    """Return what became of an entry; what holds nothing or follows a flip is not equal."""
    if isinstance(entry, LayerParity):
        return "no data" if entry.no_data else "equal" if entry.reason is None else "differs"
    if entry.reason is not None:
        return "differs"
    if entry.elements == 0:
        return "no data"
    return "not judged" if entry.tolerance is None else "equal"


def _status(entry: OutputParity | LayerParity, report: ParityResult) -> doc.Status:
    answer = _answer(entry)
    word = "within tolerance" if answer == "equal" and report.in_few_bits else answer
    return doc.Status(word, {"equal": True, "differs": False}.get(answer))


_Error = tuple[OutputParity | LayerParity, str, float, float | None]


def _errors(entry: OutputParity | LayerParity) -> Iterator[_Error]:
    """Yield what was compared of an entry, in the order of execution, with its tolerance."""
    if isinstance(entry, OutputParity):
        yield entry, "output", entry.max_abs_error, entry.tolerance
        return
    if entry.score_error is not None:
        yield entry, "scores", entry.score_error, entry.score_tolerance
    yield entry, "gates", entry.gate_error, entry.gate_tolerance
    if entry.attention_error is not None:
        yield entry, "attention", entry.attention_error, entry.attention_tolerance


def _error_row(
    entry: OutputParity | LayerParity,
    what: str,
    error: float,
    limit: float | None,
    report: ParityResult,
) -> tuple[doc.Cell, ...]:
    name = entry.name if isinstance(entry, OutputParity) else entry.path
    words = f"{name}: error {number(error)}, tolerance {number(limit) or 'none'}"
    is_bad = limit is not None and error > limit
    # A tolerance of 0 has no place on a logarithmic axis.
    drawn = doc.Drawn(words, error, limit or None, bar_from=0.0, is_bad=is_bad)
    return (name, what, drawn, error, limit, _status(entry, report))


_Compared = TypeVar("_Compared", OutputParity, LayerParity)


def _worst(entries: Iterable[_Compared]) -> list[_Compared]:
    """Return the worst entry of each name, names in order of appearance."""
    worst: dict[str, tuple[float, _Compared]] = {}
    for entry in entries:
        name = entry.name if isinstance(entry, OutputParity) else entry.path
        if entry.reason is not None or (isinstance(entry, LayerParity) and entry.no_data):
            badness = math.inf
        else:
            # Without a tolerance (behind an explained flip) it is not judged, and comes last.
            badness = max(error / limit if limit else 0.0 for _, _, error, limit in _errors(entry))
        if name not in worst or badness > worst[name][0]:
            worst[name] = badness, entry
    return [entry for _, entry in worst.values()]


def _suites(report: ParityResult) -> Iterator[doc.CiSuite]:
    """Yield a suite for every comparison: its verdict, metrics, outputs and layers."""
    for part in report.comparisons:
        facts = {"subject": part.subject, "reference": part.reference, "policy": part.policy}
        facts |= {"kernels": part.kernels.describe(), "verdict": part.answer}
        facts |= {fact.name: f"{fact.value} {fact.note}" for fact in _agreement_facts(part)}
        # CIs tell suites apart by their names alone.
        against = part.reference if report.parts else ""
        cases = tuple(_cases(part))
        yield doc.CiSuite(cases, against=against, facts=tuple(facts.items()), notes=part.notes)


def _cases(report: ParityResult) -> Iterator[doc.CiCase]:
    verdict: doc.CiOutcome = "passed" if report.equal else "failure"
    compared = len(report.accuracy) + len(report.outputs) + len(report.layers)
    message = f"{report.answer}: {compared} comparisons" if report.equal else report.reasons[0]
    yield doc.CiCase("verify", "verdict", verdict, message)
    yield from map(accuracy_case, report.accuracy)
    for check in report.checks:
        outcome: doc.CiOutcome = "passed" if check.reason is None else "failure"
        yield doc.CiCase(
            "checks", check.name, outcome, f"{shown_verdict(check.verdict)}: {check.measured}"
        )
    yield from map(_output_case, report.outputs)
    yield from map(_layer_case, report.layers)
    # Skipped, not left out: a CI that counts cases sees that routing was not compared.
    if not report.has_routing:
        yield doc.CiCase("layers", "routing", "skipped", "The reference holds no gates.")


def _output_case(entry: OutputParity) -> doc.CiCase:
    name = f"{entry.name} [{entry.vectors}]"
    measured = f"max abs error {entry.max_abs_error:.3g}"
    if entry.reason is not None:
        return doc.CiCase("outputs", name, "failure", entry.reason)
    if entry.elements == 0:
        return doc.CiCase("outputs", name, "skipped", "It is empty: no data.")
    if entry.tolerance is None:
        return doc.CiCase("outputs", name, "skipped", f"{measured}, behind an explained flip")
    return doc.CiCase("outputs", name, "passed", f"{measured}, tolerance {entry.tolerance:.3g}")


def _layer_case(entry: LayerParity) -> doc.CiCase:
    name = f"{entry.path} [{entry.vectors}]"
    if entry.reason is not None:
        return doc.CiCase("layers", name, "failure", entry.reason)
    if entry.no_data:
        return doc.CiCase("layers", name, "skipped", "No token was left to compare: no data.")
    measured = [f"{entry.equal_decisions} of {entry.decisions} clear decisions are equal"]
    measured.append(f"gate error {entry.gate_error:.3g}")
    if entry.score_error is not None:
        score = f"score error {entry.score_error:.3g}, tolerance {entry.score_tolerance:.3g}"
        measured.append(score)
    if entry.attention_error is not None:
        limit = f"tolerance {entry.attention_tolerance:.3g}"
        measured.append(f"attention error {entry.attention_error:.3g}, {limit}")
    return doc.CiCase("layers", name, "passed", ", ".join(measured))
