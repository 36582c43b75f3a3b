"""What a report says of metrics of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moh_deploy.report.document import (
    Block,
    Cell,
    CiCase,
    Column,
    Drawn,
    Fact,
    Folded,
    Section,
    Status,
    Table,
    Text,
)
from moh_deploy.report.formats import PAGE, TEXT
from moh_deploy.report.numbers import count, figure
from moh_deploy.validate.accuracy.show import shown, shown_gap

if TYPE_CHECKING:
    from moh_deploy.validate.accuracy.metric_parity import ChangedSample, MetricParity

# A page has the drawing, and less room beside it.
_CELLS: tuple[tuple[str | Column, Callable[[MetricParity], Cell]], ...] = (
    ("metric", lambda one: one.metric),
    (Column("loss as a share of what may be lost", PAGE), lambda one: _drawn(one)),
    ("#reference", lambda one: shown(one.metric, one.reference)),
    ("#this", lambda one: shown(one.metric, one.package)),
    (Column("#difference, 95 % interval", PAGE), lambda one: _change(one)),
    (Column("#difference", TEXT), lambda one: shown_gap(one.metric, one.difference)),
    (Column("#95 % interval", TEXT), lambda one: _bounds(one)),
    ("#may be lost", lambda one: shown_gap(one.metric, one.allowed_drop)),
    ("#samples", lambda one: one.samples),
    (Column("#worse, better", PAGE), lambda one: f"{one.worse}, {one.improved}"),
    (Column("#worse", TEXT), lambda one: one.worse),
    (Column("#better", TEXT), lambda one: one.improved),
    ("#p", lambda one: figure(one.p_value)),
    ("verdict", lambda one: Status(one.verdict, one.verdict == "passed")),
)
"""The head of each column, and what stands in it."""
_ABOUT = (
    "The dot is what the metric lost, the line through it its 95 % interval, in shares of what may"
    " be lost: all of it has to be left of the upright line at 1. Left of 0 the metric is better"
    " than the reference's."
)


def accuracy_section(metrics: Sequence[MetricParity], id_: str) -> Section:
    """Return all metrics, how each came about, and the samples that changed."""
    # The axis shows at least what may be lost twice over, and half as much gained.
    rows, least = [[cell(one) for _, cell in _CELLS] for one in metrics], (-1.0, 2.0)
    columns = tuple(head for head, _ in _CELLS)
    table = Table("accuracy", columns, rows, id_, axis="numbers", axis_holds=least)
    blocks: list[Block] = [Text(_ABOUT, shown=PAGE), table]
    for one in metrics:
        blocks += (Text(_how(one)), *_changed(one))
    return Section("Accuracy", tuple(blocks))


def accuracy_fact(one: MetricParity) -> Fact:
    """Return what the metric is here, beside the reference's."""
    note = f"{shown(one.metric, one.reference)} in the reference: {one.verdict}"
    return Fact(one.metric, shown(one.metric, one.package), note)


def accuracy_case(one: MetricParity) -> CiCase:
    """Return the metric as a test case; not knowing is no pass."""
    name = f"{one.metric} [{one.against}]"
    if one.reason is not None:
        return CiCase("accuracy", name, "failure", f"{one.verdict}: {one.reason}")
    values = f"{shown(one.metric, one.reference)}, now {shown(one.metric, one.package)}"
    return CiCase("accuracy", name, "passed", f"{values}, {one.samples} samples")


def _bounds(one: MetricParity) -> str | None:
    return None if one.interval is None else shown_gap(one.metric, *one.interval)


def _change(one: MetricParity) -> str:
    return f"{shown_gap(one.metric, one.difference)}, {_bounds(one) or 'none'}"


def _drawn(one: MetricParity) -> Drawn:
    """Draw the loss and its interval in shares of what may be lost; there is none without."""
    words = f"{one.metric}: {_change(one)}"
    if one.interval is None or not one.allowed_drop:
        return Drawn(words, math.nan, 1.0)
    # To the right is worse, whichever way the metric goes.
    sign = -1.0 if one.better == "higher" else 1.0
    ends = (*one.interval, one.difference)
    low, high, loss = (sign * end / one.allowed_drop for end in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Drawn(words, math.nan, 1.0)
    interval = (min(low, high), max(low, high))
    return Drawn(words, loss, 1.0, interval, is_bad=one.verdict != "passed")


def _how(one: MetricParity) -> str:
    """Return a sentence on what was scored, with what, and how the interval came about."""
    output = f"output '{one.output}'" if one.output else "all outputs"
    parts = [f"{one.metric} of {output}, {one.better} is better: {count(one.samples, 'sample')}"]
    parts += [f"{one.labels} labels"] if one.labels != one.samples else []
    parts += [f"{one.ignored} more ignored"] if one.ignored else []
    parts += ["each scored with the output one position before"] if one.shifted else []
    limit = f"What may be lost: {one.rule.reason}."
    return f"{', '.join(parts)}. Reference: {one.against}. {_interval(one)}{limit}"


def _interval(one: MetricParity) -> str:
    if one.interval is None:
        return ""
    added = ", to which one lost and one won are added" if one.smoothed else ""
    drawn = f"{one.resamples} resamples{added}, seed {one.seed}"
    test = "" if one.p_value is None else " p is of McNemar's exact test."
    return f"Interval: paired bootstrap, {drawn}.{test} "


def _changed(one: MetricParity) -> tuple[Folded, ...]:
    """Return the samples that changed: classes where there are any, else scores."""
    if not one.changed:
        return ()
    has_classes = any(sample.label is not None for sample in one.changed)
    columns = ("sample", "where", *(("#label",) if has_classes else ()), "#reference", "#this")
    changed = count(one.worse + one.improved, "changed sample")
    title = f"{one.metric}: {len(one.changed)} of {changed}, the worst first"
    return (Folded(title, (Table(title, columns, list(map(_sample, one.changed))),)),)


def _sample(one: ChangedSample) -> tuple[Cell, ...]:
    if one.label is None:
        return (one.sample, one.file, f"{one.reference_score:.5g}", f"{one.package_score:.5g}")
    return (one.sample, one.file, one.label, one.reference_class, one.package_class)
