"""Metrics of a task on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moh_deploy.report.accuracy import COLUMNS, cells, changed_cells, changed_columns, how
from moh_deploy.report.html.tables import Cell, Status, Table
from moh_deploy.validate.accuracy import MetricParity


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
    rows = [(*cells(one)[:-1], Status(one.verdict, one.verdict == "passed")) for one in metrics]
    changed = tuple(_changed(one) for one in metrics if one.changed)
    return Accuracy(Table("metrics of the task", COLUMNS, rows), tuple(map(how, metrics)), changed)


def _changed(one: MetricParity) -> Table:
    title = f"{one.metric}: {len(one.changed)} of {one.worse + one.improved} changed samples"
    rows: Iterable[Sequence[Cell]] = map(changed_cells, one.changed)
    return Table(title, list(changed_columns(one)), list(rows))
