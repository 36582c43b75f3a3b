"""A parity report as Markdown, for a comment on a pull request: the verdict first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.accuracy import COLUMNS, cells, changed_cells, changed_columns, how
from moh_deploy.report.parity import (
    Answer,
    layer_answer,
    output_answer,
    worst_layers,
    worst_outputs,
)
from moh_deploy.report.ratchet import ratchet_texts

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import ParityReport

_MOST_REASONS = 10


def markdown(report: ParityReport, subject: str) -> str:
    """Return the report on a package or engine."""
    return "\n".join(_lines(report, subject)) + "\n"


def markdown_error(subject: str, message: str) -> str:
    """Return the report on a run that ended without an answer."""
    return f"### {_cell(subject)}: no answer\n\n{_cell(message)}\n"


def _lines(report: ParityReport, subject: str) -> Iterator[str]:
    yield f"### {_cell(subject)}: {_verdict(report)}"
    yield ""
    if report.ratchet is not None:
        yield from (*(f"- {_cell(text)}" for text in ratchet_texts(report.ratchet)), "")
    if not report.parts:
        yield f"Compared with {_cell(report.reference)}; tolerances: {_cell(report.policy)}."
        yield _cell(report.kernels.describe())
        yield from _comparison(report)
        return
    yield f"{len(report.parts)} comparisons; tolerances: {_cell(report.policy)}."
    yield _cell(report.kernels.describe())
    for part in report.parts:
        yield from ("", f"#### Against {_cell(part.reference)}: {_verdict(part)}")
        yield from _comparison(part)


def _verdict(report: ParityReport) -> str:
    if report.ratchet is not None and report.ratchet.reasons:
        return "equal, and WORSE THAN BEFORE"
    return "equal" if report.equal else "NOT EQUAL"


def _comparison(report: ParityReport) -> Iterator[str]:
    for note in report.notes:
        yield from ("", _cell(note))
    if not report.equal:
        yield ""
        yield from (f"- {_cell(reason)}" for reason in report.reasons[:_MOST_REASONS])
        if len(report.reasons) > _MOST_REASONS:
            yield f"- and {len(report.reasons) - _MOST_REASONS} more"
    yield from _accuracy(report)
    yield from _outputs(report)
    yield from _layers(report)


def _accuracy(report: ParityReport) -> Iterator[str]:
    if not report.accuracy:
        return
    yield from _head(*(column.lstrip("#") for column in COLUMNS))
    for one in report.accuracy:
        yield _row(*("-" if cell is None else cell for cell in cells(one)))
    for one in report.accuracy:
        yield from ("", _cell(how(one)))
        if one.changed:
            yield from _head(*(column.lstrip("#") for column in changed_columns(one)))
            yield from (_row(*changed_cells(sample)) for sample in one.changed)


def _outputs(report: ParityReport) -> Iterator[str]:
    if not report.outputs:
        return
    yield from _head("output", "worst vectors", "max abs error", "tolerance", "")
    for one in worst_outputs(report):
        tolerance = "-" if one.tolerance is None else one.tolerance
        yield _row(one.name, one.vectors, one.max_abs_error, tolerance, _bold(output_answer(one)))


def _layers(report: ParityReport) -> Iterator[str]:
    if not report.has_routing:
        yield from ("", "Routing was not compared: the reference holds no gates.")
    if not report.layers:
        return
    columns = ("unexplained flips", "explained", "gate error", "tolerance", "")
    yield from _head("MoH layer", "worst vectors", "same choice", *columns)
    for one in worst_layers(report):
        yield _row(
            one.path,
            one.vectors,
            "-" if one.agreement is None else f"{100 * one.agreement:.2f} %",
            one.flipped_tokens,
            one.excused_tokens,
            one.gate_error,
            one.gate_tolerance,
            _bold(layer_answer(one)),
        )


def _bold(answer: Answer) -> str:
    return "**differs**" if answer == "differs" else answer


def _head(*columns: str) -> Iterable[str]:
    return ("", _row(*columns), _row(*("---" for _ in columns)))


def _row(*cells: object) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    """Return text that Markdown shows as it is: no cell, tag, link or mention begins in it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return text if text == "**differs**" else re.sub(r"([\\`*_\[\]|@#~])", r"\\\1", text)
