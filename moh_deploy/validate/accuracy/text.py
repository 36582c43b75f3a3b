"""How metrics of a task look to people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from moh_deploy.report.tables import count, line, table
from moh_deploy.validate.accuracy.show import shown, shown_gap

if TYPE_CHECKING:
    from moh_deploy.validate.accuracy import ChangedSample, MetricParity

COLUMNS = (
    "metric",
    "#reference",
    "#this",
    "#difference",
    "#95 % interval",
    "#may be lost",
    "#samples",
    "#worse",
    "#better",
    "#p",
    "verdict",
)


def accuracy_tables(metrics: Iterable[MetricParity]) -> Iterator[RenderableType]:
    """Return a table of metrics, and one of samples that changed for each; nothing for none."""
    metrics = list(metrics)
    if not metrics:
        return
    yield table("accuracy", COLUMNS, map(cells, metrics))
    for one in metrics:
        yield line(how(one))
        if one.changed:
            title = (
                f"{one.metric}: {len(one.changed)} of {one.worse + one.improved} changed samples"
            )
            yield table(title, list(changed_columns(one)), map(changed_cells, one.changed))


def cells(one: MetricParity) -> tuple[object, ...]:
    """Return what a table says of a metric, by `COLUMNS`."""
    return (
        one.metric,
        shown(one.metric, one.reference),
        shown(one.metric, one.package),
        shown_gap(one.metric, one.difference),
        None if one.interval is None else shown_gap(one.metric, *one.interval),
        shown_gap(one.metric, one.allowed_drop),
        one.samples,
        one.worse,
        one.improved,
        None if one.p_value is None else f"{one.p_value:.3g}",
        one.verdict,
    )


def how(one: MetricParity) -> str:
    """Return a sentence on what was scored, with what, and how the interval came about."""
    output = f"output '{one.output}'" if one.output else "all outputs"
    parts = [f"{one.metric} of {output}, {one.better} is better: {count(one.samples, 'sample')}"]
    parts += [f"{one.labels} labels"] if one.labels != one.samples else []
    parts += [f"{one.ignored} more ignored"] if one.ignored else []
    parts += ["each scored with the output one position before"] if one.shifted else []
    return f"{', '.join(parts)}. Reference: {one.against}. {_interval(one)}{_limit(one)}"


def _interval(one: MetricParity) -> str:
    if one.interval is None:
        return ""
    added = ", to which one lost and one won are added" if one.smoothed else ""
    drawn = f"{one.resamples} resamples{added}, seed {one.seed}"
    test = "" if one.p_value is None else " p is of McNemar's exact test."
    return f"Interval: paired bootstrap, {drawn}.{test} "


def _limit(one: MetricParity) -> str:
    return f"What may be lost: {one.rule.reason}."


def changed_title(one: MetricParity) -> str:
    """Return what stands above the samples that changed."""
    return f"{one.metric}: {count(len(one.changed), 'sample')} that changed, the worst first"


def changed_columns(one: MetricParity) -> Iterator[str]:
    """Return the columns of samples that changed: classes where there are any, else scores."""
    yield from ("sample", "where")
    has_classes = any(sample.label is not None for sample in one.changed)
    yield from ("#label", "#reference", "#this") if has_classes else ("#reference", "#this")


def changed_cells(sample: ChangedSample) -> tuple[object, ...]:
    """Return what a table says of a sample."""
    if sample.label is None:
        scores = (sample.reference_score, sample.package_score)
        return (sample.sample, sample.file, *(f"{score:.5g}" for score in scores))
    classes = (sample.reference_class, sample.package_class)
    return (sample.sample, sample.file, sample.label, *classes)
