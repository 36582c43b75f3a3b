"""Metrics of a task on both sides, the loss drawn beside what may be lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moh_deploy.report.html.scales import Scale, round_numbers
from moh_deploy.report.html.tables import Cell, Mark, Status, Table, Track, number
from moh_deploy.validate.accuracy import MetricParity
from moh_deploy.validate.accuracy.show import shown, shown_gap
from moh_deploy.validate.accuracy.text import changed_cells, changed_columns, changed_title, how

_COLUMNS = (
    "metric",
    "loss as a share of what may be lost",
    "#reference",
    "#this",
    "#difference, 95 % interval",
    "#may be lost",
    "#samples",
    "#worse, better",
    "#p",
    "verdict",
)


@dataclass(frozen=True)
class Accuracy:
    """What is shown of all metrics.

    Attributes:
        metrics: A row each.
        how: A sentence on each.
        changed: For each metric that has some, samples that the two sides do not score alike.
    """

    metrics: Table
    how: tuple[str, ...]
    changed: tuple[Table, ...]


def accuracy(metrics: Sequence[MetricParity]) -> Accuracy | None:
    """Return what is shown; None without labels."""
    if not metrics:
        return None
    ends = [end for one in metrics for end in _drawn(one) if math.isfinite(end)]
    scale = round_numbers(min([-1.0, *ends]), max([2.0, *ends]), is_log=False)
    table = Table("metrics of the task", _COLUMNS, [_row(one, scale) for one in metrics], scale)
    changed = tuple(_changed(one) for one in metrics if one.changed)
    return Accuracy(table, tuple(map(how, metrics)), changed)


def _changed(one: MetricParity) -> Table:
    return Table(
        changed_title(one), tuple(changed_columns(one)), list(map(changed_cells, one.changed))
    )


def _row(one: MetricParity, scale: Scale) -> Sequence[Cell]:
    interval = None if one.interval is None else shown_gap(one.metric, *one.interval)
    difference = f"{shown_gap(one.metric, one.difference)}, {interval or 'none'}"
    return (
        one.metric,
        Track(f"{one.metric}: {difference}", tuple(_marks(one, scale)), scale),
        shown(one.metric, one.reference),
        shown(one.metric, one.package),
        difference,
        shown_gap(one.metric, one.allowed_drop),
        one.samples,
        f"{one.worse}, {one.improved}",
        number(one.p_value),
        Status(one.verdict, one.verdict == "passed"),
    )


def _marks(one: MetricParity, scale: Scale) -> Iterator[Mark]:
    """Return the interval of the loss, the loss, and a line at 1, which is what may be lost."""
    low, loss, high = _drawn(one)
    if math.isfinite(low) and math.isfinite(high):
        yield Mark("interval", scale.at(low), scale.at(high))
        yield Mark("dot", scale.at(loss), is_bad=one.verdict != "passed")
    yield Mark("limit", scale.at(1.0))


def _drawn(one: MetricParity) -> tuple[float, float, float]:
    """Return lower end, loss and upper end, as shares of what may be lost; NaN for none."""
    if one.interval is None or not one.allowed_drop:
        return (math.nan, math.nan, math.nan)
    sign = -1.0 if one.better == "higher" else 1.0
    low, loss, high = (sign * end / one.allowed_drop for end in _ends(one, one.interval))
    return (min(low, high), loss, max(low, high))


def _ends(one: MetricParity, interval: tuple[float, float]) -> tuple[float, float, float]:
    return (interval[0], one.difference, interval[1])
