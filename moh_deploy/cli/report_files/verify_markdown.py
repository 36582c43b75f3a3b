"""A parity report as Markdown, for a comment on a pull request: the verdict first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.baseline.text import ratchet_texts
from moh_deploy.report.markdown_text import Markup, markdown_table, markdown_text
from moh_deploy.validate.accuracy.text import COLUMNS, cells, changed_cells, changed_columns, how
from moh_deploy.validate.parity_text import (
    Answer,
    layer_answer,
    output_answer,
    worst_layers,
    worst_outputs,
)

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import ParityReport

_MOST_REASONS = 10


def markdown(report: ParityReport, subject: str) -> str:
    """Return the report on a package or engine."""
    return "\n".join(_lines(report, subject)) + "\n"


def markdown_error(subject: str, message: str) -> str:
    """Return the report on a run that ended without an answer."""
    return f"### {markdown_text(subject)}: no answer\n\n{markdown_text(message)}\n"


def _lines(report: ParityReport, subject: str) -> Iterator[str]:
    yield f"### {markdown_text(subject)}: {_verdict(report)}"
    yield ""
    if report.ratchet is not None:
        yield from (*(f"- {markdown_text(text)}" for text in ratchet_texts(report.ratchet)), "")
    parts = len(report.parts)
    compared = f"{parts} comparisons" if parts else f"Compared with {report.reference}"
    yield markdown_text(f"{compared}; tolerances: {report.policy}.")
    yield markdown_text(report.kernels.describe())
    if not report.parts:
        yield from _comparison(report)
    for part in report.parts:
        yield from ("", f"#### Against {markdown_text(part.reference)}: {_verdict(part)}")
        yield from _comparison(part)


def _verdict(report: ParityReport) -> str:
    if report.ratchet is not None and report.ratchet.reasons:
        return "equal, and WORSE THAN BEFORE"
    return "equal" if report.equal else report.answer


def _comparison(report: ParityReport) -> Iterator[str]:
    for note in report.notes:
        yield from ("", markdown_text(note))
    if not report.equal:
        yield ""
        yield from (f"- {markdown_text(reason)}" for reason in report.reasons[:_MOST_REASONS])
        if len(report.reasons) > _MOST_REASONS:
            yield f"- and {len(report.reasons) - _MOST_REASONS} more"
    yield from _accuracy(report)
    yield from _outputs(report)
    yield from _layers(report)


def _accuracy(report: ParityReport) -> Iterator[str]:
    if not report.accuracy:
        return
    yield from markdown_table(COLUMNS, map(cells, report.accuracy))
    for one in report.accuracy:
        yield from ("", markdown_text(how(one)))
        if one.changed:
            columns = list(changed_columns(one))
            yield from markdown_table(columns, map(changed_cells, one.changed))


def _outputs(report: ParityReport) -> Iterator[str]:
    columns = ("output", "worst vectors", "#max abs error", "#tolerance", "")
    rows = [
        (one.name, one.vectors, one.max_abs_error, one.tolerance, _bold(output_answer(one)))
        for one in worst_outputs(report)
    ]
    if rows:
        yield from markdown_table(columns, rows)


def _layers(report: ParityReport) -> Iterator[str]:
    if not report.has_routing:
        yield from ("", "Routing was not compared: the reference holds no gates.")
    routers = ("MoH layer", "worst vectors", "#same choice", "#unexplained flips", "#explained")
    columns = (*routers, "#gate error", "#tolerance", "#attention", "#tolerance", "judged by", "")
    rows = [
        (
            one.path,
            one.vectors,
            None if one.agreement is None else f"{100 * one.agreement:.2f} %",
            one.flipped_tokens,
            one.excused_tokens,
            one.gate_error,
            one.gate_tolerance,
            one.attention_error,
            one.attention_tolerance,
            one.judged_by,
            _bold(layer_answer(one)),
        )
        for one in worst_layers(report)
    ]
    if rows:
        yield from markdown_table(columns, rows)


def _bold(answer: Answer) -> str:
    return Markup("**differs**") if answer == "differs" else answer
