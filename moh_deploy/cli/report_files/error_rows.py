"""How far routers and outputs are from the reference, in order of execution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from moh_deploy.report.html.scales import Scale, decades
from moh_deploy.report.html.tables import Cell, Mark, Status, Table, Track, number
from moh_deploy.validate.parity_report import LayerParity, ParityReport
from moh_deploy.validate.parity_text import (
    Answer,
    layer_answer,
    output_answer,
    worst_layers,
    worst_outputs,
)

_TITLE = (
    "errors, worst vector set of each: largest absolute one of gates and outputs, root mean square"
    " of scores, and of attention as a share of its size"
)
_COLUMNS = ("layer or output", "what", "error beside tolerance", "#error", "#tolerance", "verdict")


def error_table(report: ParityReport) -> Table:
    """Return the worst vector set of each router, then of each output, with errors drawn."""
    layers, outputs = worst_layers(report), worst_outputs(report)
    figures = [figure for one in layers for figure in _figures(one)]
    errors = [error for _, error, _ in figures] + [one.max_abs_error for one in outputs]
    limits = [limit for *_, limit in figures] + [one.tolerance or 0.0 for one in outputs]
    # Infinity is drawn at the right end: beyond all limits.
    beyond = [10 * one for one in limits] if any(map(math.isinf, errors)) else []
    scale = decades([*errors, *limits, *beyond])
    rows = [
        *(
            _row(one.path, what, error, limit, layer_answer(one), scale)
            for one in layers
            for what, error, limit in _figures(one)
        ),
        *(
            _row(one.name, "output", one.max_abs_error, one.tolerance, output_answer(one), scale)
            for one in outputs
        ),
    ]
    return Table(_TITLE, _COLUMNS, rows, scale)


def _figures(one: LayerParity) -> Iterator[tuple[str, float, float]]:
    """Yield what was measured of a layer, its error, and what that may be."""
    if one.score_error is not None:
        yield "scores", one.score_error, one.score_tolerance or 0.0
    yield "gates", one.gate_error, one.gate_tolerance
    if one.attention_error is not None:
        yield "attention", one.attention_error, one.attention_tolerance or 0.0


def status(answer: Answer) -> Status:
    """Return how the verdict on a layer or an output is shown."""
    return Status(answer, {"equal": True, "differs": False}.get(answer))


def _row(
    name: str, what: str, error: float, limit: float | None, answer: Answer, scale: Scale
) -> Sequence[Cell]:
    words = f"{name}: error {number(error)}, tolerance {number(limit) or 'none'}"
    track = Track(words, _marks(error, limit, scale), scale)
    return (name, what, track, number(error), number(limit), status(answer))


def _marks(error: float, limit: float | None, scale: Scale) -> tuple[Mark, ...]:
    """Return a bar up to the error, and a line at the tolerance; NaN has no place."""
    marks = []
    if not math.isnan(error):
        is_bad = limit is not None and error > limit
        end = 100.0 if math.isinf(error) else scale.at(error)
        marks += [Mark("bar", 0.0, end, is_bad), Mark("dot", end, is_bad=is_bad)]
    if limit is not None and limit > 0:
        marks.append(Mark("limit", scale.at(limit)))
    return tuple(marks)
