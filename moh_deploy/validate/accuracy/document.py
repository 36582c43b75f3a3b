"""What a report says of metrics of a task."""

import math
from collections.abc import Callable, Iterator, Sequence

from moh_deploy.report import document as doc
from moh_deploy.report.numbers import count, figure
from moh_deploy.validate.accuracy.metric_parity import MetricParity, shown, shown_gap

# A page has the drawing, and less room beside it.
_CELLS: tuple[tuple[str | doc.Column, Callable[[MetricParity], doc.Cell]], ...] = (
    ("metric", lambda metric: metric.metric),
    (doc.Column("loss as a share of what may be lost", doc.PAGE), lambda metric: _drawn(metric)),
    ("#reference", lambda metric: shown(metric.metric, metric.reference)),
    ("#this", lambda metric: shown(metric.metric, metric.package)),
    (doc.Column("#difference, 95 % interval", doc.PAGE), lambda metric: _change(metric)),
    (
        doc.Column("#difference", doc.TEXT),
        lambda metric: shown_gap(metric.metric, metric.difference),
    ),
    (doc.Column("#95 % interval", doc.TEXT), lambda metric: _bounds(metric)),
    ("#may be lost", lambda metric: shown_gap(metric.metric, metric.allowed_drop)),
    ("#samples", lambda metric: metric.samples),
    (doc.Column("#worse, better", doc.PAGE), lambda metric: f"{metric.worse}, {metric.improved}"),
    (doc.Column("#worse", doc.TEXT), lambda metric: metric.worse),
    (doc.Column("#better", doc.TEXT), lambda metric: metric.improved),
    ("#p", lambda metric: figure(metric.p_value)),
    ("verdict", lambda metric: doc.Status(metric.verdict, metric.verdict == "passed")),
)
"""The head of each column, and what stands in it."""
_ABOUT = (
    "The dot is what the metric lost, the line through it its 95 % interval, in shares of what may"
    " be lost: all of it has to be left of the upright line at 1. Left of 0 the metric is better"
    " than the reference's."
)


def accuracy_section(metrics: Sequence[MetricParity], id_: str) -> doc.Section:
    """Return all metrics, how each came about, and the samples that changed."""
    # The axis shows at least what may be lost twice over, and half as much gained.
    rows, least = [[cell(metric) for _, cell in _CELLS] for metric in metrics], (-1.0, 2.0)
    columns = tuple(head for head, _ in _CELLS)
    table = doc.Table("accuracy", columns, rows, id_, axis="numbers", axis_holds=least)
    blocks: list[doc.Block] = [doc.Text(_ABOUT, shown=doc.PAGE), table]
    for metric in metrics:
        blocks += (doc.Text(_how(metric)), *_changed(metric))
    return doc.Section("Accuracy", tuple(blocks))


def accuracy_fact(metric: MetricParity) -> doc.Fact:
    """Return what the metric is here, beside the reference's."""
    note = f"{shown(metric.metric, metric.reference)} in the reference: {metric.verdict}"
    return doc.Fact(metric.metric, shown(metric.metric, metric.package), note)


def accuracy_case(metric: MetricParity) -> doc.CiCase:
    """Return the metric as a test case; not knowing is no pass."""
    name = f"{metric.metric} [{metric.against}]"
    if metric.reason is not None:
        return doc.CiCase("accuracy", name, "failure", f"{metric.verdict}: {metric.reason}")
    values = f"{shown(metric.metric, metric.reference)}, now {shown(metric.metric, metric.package)}"
    return doc.CiCase("accuracy", name, "passed", f"{values}, {metric.samples} samples")


def _bounds(metric: MetricParity) -> str | None:
    return None if metric.interval is None else shown_gap(metric.metric, *metric.interval)


def _change(metric: MetricParity) -> str:
    return f"{shown_gap(metric.metric, metric.difference)}, {_bounds(metric) or 'none'}"


def _drawn(metric: MetricParity) -> doc.Drawn:
    """Draw the loss and its interval in shares of what may be lost; there is none without."""
    words = f"{metric.metric}: {_change(metric)}"
    if metric.interval is None or not metric.allowed_drop:
        return doc.Drawn(words, math.nan, 1.0)
    # To the right is worse, whichever way the metric goes.
    sign = -1.0 if metric.better == "higher" else 1.0
    ends = (*metric.interval, metric.difference)
    low, high, loss = (sign * end / metric.allowed_drop for end in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        return doc.Drawn(words, math.nan, 1.0)
    interval = (min(low, high), max(low, high))
    return doc.Drawn(words, loss, 1.0, interval, is_bad=metric.verdict != "passed")


def _how(metric: MetricParity) -> str:
    """Return a sentence on what was scored, with what, and how the interval came about."""
    output = f"output '{metric.output}'" if metric.output else "all outputs"
    parts = [
        f"{metric.metric} of {output}, {metric.better} is better: {count(metric.samples, 'sample')}"
    ]
    parts += [f"{metric.labels} labels"] if metric.labels != metric.samples else []
    parts += [f"{metric.ignored} more ignored"] if metric.ignored else []
    parts += ["each scored with the output one position before"] if metric.shifted else []
    interval = ""
    if metric.interval is not None:
        added = ", to which one lost and one won are added" if metric.smoothed else ""
        drawn = f"{metric.resamples} resamples{added}, seed {metric.seed}"
        test = "" if metric.p_value is None else " p is of McNemar's exact test."
        interval = f"Interval: paired bootstrap, {drawn}.{test} "
    limit = f"What may be lost: {metric.rule.reason}."
    return f"{', '.join(parts)}. Reference: {metric.against}. {interval}{limit}"


def _changed(metric: MetricParity) -> Iterator[doc.Folded]:
    """Yield the samples that changed: classes where there are any, else scores."""
    if not metric.changed:
        return
    has_classes = any(sample.label is not None for sample in metric.changed)
    columns = ("sample", "where", *(("#label",) if has_classes else ()), "#reference", "#this")
    changed = count(metric.worse + metric.improved, "changed sample")
    title = f"{metric.metric}: {len(metric.changed)} of {changed}, the worst first"
    rows: list[tuple[doc.Cell, ...]] = []
    for sample in metric.changed:
        scores = f"{sample.reference_score:.5g}", f"{sample.package_score:.5g}"
        classes = sample.label, sample.reference_class, sample.package_class
        values = scores if sample.label is None else classes
        rows.append((sample.sample, sample.file, *values))
    yield doc.Folded(title, (doc.Table(title, columns, rows),))
