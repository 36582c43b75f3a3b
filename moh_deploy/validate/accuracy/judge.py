"""Judge a metric: is what the package may have lost within what it may lose?

The question is one of non-inferiority: not whether the two sides differ, which more samples always
show, but whether the loss is below a limit. The interval of the loss answers: below the limit, it
passed; above, it failed; on both sides of it, these samples cannot tell, and that is no pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moh_deploy.report import document as doc
from moh_deploy.report.report import count, figure, shown_verdict
from moh_deploy.validate.accuracy import bootstrap
from moh_deploy.validate.accuracy import metric_parity as parity
from moh_deploy.validate.accuracy.task import BUILT_IN_METRICS, IntArray, Metric, PairedScores
from moh_deploy.validate.reference.differences import Float64Array

_MOST_SHOWN = 10
_ROUNDING = 1e-4
"""Of a score: a smaller change is not worth showing."""
_MOST_WANTED = 10_000_000

# Weight, total of the reference, total of the package.
# Without them the interval of few changed samples is too narrow: of none it has no width at all.
ONE_LOST_ONE_WON = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Setting:
    """The rule, reference and sample places that a metric is judged with."""

    against: str
    rule: parity.AccuracyRule
    place: Callable[[int], str]  # Number of a sample to where it is


def judge(metric: Metric, paired: PairedScores, setting: Setting) -> parity.MetricParity:
    """Compare the metric of both sides."""
    # Sums of these columns are all that the metric needs, so resampling adds up rows.
    rows = np.stack([paired.weights, paired.reference, paired.package], axis=1)  # [N, 3]
    reference, package = (float(v[0]) for v in _values(metric, rows.sum(axis=0, keepdims=True)))
    smoothed = paired.right_or_wrong
    # One sample without a score makes every resample that draws it NaN.
    known = bool(paired.finite.all()) and math.isfinite(reference) and math.isfinite(package)
    interval = _interval(metric, rows, smoothed) if known else None
    with np.errstate(invalid="ignore"):
        gain = (paired.package - paired.reference) / paired.weights  # [N]; NaN without a score
    gain = gain if metric.better == "higher" else -gain
    worse, improved = int((gain < 0).sum()), int((gain > 0).sum())
    allowed = setting.rule.allowed(reference)
    values = (reference, package)
    verdict, reason = _verdict(metric, paired, setting.rule, values, interval, allowed)
    return parity.MetricParity(
        metric=metric.name,
        output=metric.output,
        better=metric.better,
        samples=len(rows),
        labels=int(paired.weights.sum()),
        ignored=paired.ignored,
        shifted=metric.shifted,
        against=setting.against,
        reference=reference,
        package=package,
        interval=interval,
        confidence=bootstrap.CONFIDENCE,
        resamples=bootstrap.RESAMPLES,
        seed=bootstrap.SEED,
        smoothed=smoothed,
        worse=worse,
        improved=improved,
        p_value=bootstrap.mcnemar(worse, improved) if smoothed else None,
        rule=setting.rule,
        allowed_drop=allowed,
        changed=tuple(_changed(paired, gain, setting.place)),
        verdict=verdict,
        reason=reason,
    )


def _values(metric: Metric, sums: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the metric of both sides for sums [R, 3] of rows."""
    with np.errstate(invalid="ignore"):
        return metric.value(sums[:, 1] / sums[:, 0]), metric.value(sums[:, 2] / sums[:, 0])


def _interval(metric: Metric, rows: Float64Array, smoothed: bool) -> tuple[float, float]:
    def difference(sums: Float64Array) -> Float64Array:
        # Both from the same draw: what makes samples hard for both sides cancels.
        reference, package = _values(metric, sums)
        return package - reference

    drawn = np.concatenate([rows, ONE_LOST_ONE_WON]) if smoothed else rows
    return bootstrap.paired_bootstrap(drawn, difference)


def _verdict(
    metric: Metric,
    paired: PairedScores,
    rule: parity.AccuracyRule,
    values: tuple[float, float],
    interval: tuple[float, float] | None,
    allowed: float,
) -> tuple[parity.MetricVerdict, str | None]:
    name, count = metric.name, len(paired.weights)
    if interval is None:
        return "failed", _without_score(name, paired)
    # From here on in terms of loss: more is worse, whichever way the metric points.
    low, high = interval if metric.better == "lower" else (-interval[1], -interval[0])  # of loss
    loss = (values[1] - values[0]) * (1 if metric.better == "lower" else -1)
    # What is shown to be a loss is called one.
    verb = "went" if not low > 0 else "fell" if metric.better == "higher" else "rose"
    went = f"{name} {verb} from {parity.shown(name, values[0])} to {parity.shown(name, values[1])}"
    level = f"{100 * bootstrap.CONFIDENCE:.0f} %"
    gap = f"the {level} interval of the loss is {parity.shown_gap(name, low, high)}"
    limit = f"{parity.shown_gap(name, allowed)} may be lost ({rule.reason})"
    # A clear loss is one however few samples there are; a pass needs enough of them.
    if low > allowed:
        return "failed", f"{went} on {count} samples: {gap}; {limit}."
    if count < rule.min_samples:
        few = f"{count} samples are too few to tell, at least {rule.min_samples} are needed"
        return "cannot tell", f"{went}, but {few}."
    if high <= allowed:
        return "passed", None
    enough = _enough(paired, loss, high, allowed)
    advice = f" Some {enough} samples would tell." if enough else ""
    return "cannot tell", (
        f"{went}; from {count} samples it cannot be told whether it lost too much: {gap};"
        f" {limit}.{advice}"
    )


def _without_score(name: str, paired: PairedScores) -> str:
    """Name the samples without a finite score, and their side."""
    sides = {"the package": paired.package, "the reference": paired.reference}
    wrong = {side: np.flatnonzero(~np.isfinite(totals)) for side, totals in sides.items()}
    nan = "NaN in the output" if name in BUILT_IN_METRICS else "the metric gave NaN"
    parts = [
        f"there is no finite {name} in {side} for {len(found)} of {len(totals_of)} samples, the"
        f" first is sample {int(paired.numbers[found[0]])}"
        f" ({nan if np.isnan(totals_of[found[0]]) else 'it is infinite'})"
        for (side, found), totals_of in zip(wrong.items(), sides.values(), strict=True)
        if len(found)
    ]
    return f"{'; '.join(parts) or f'{name} is out of range of float64'}."


def _enough(paired: PairedScores, loss: float, high: float, allowed: float) -> int | None:
    """Return about how many samples bring the end of the interval to the limit; None for none.

    The end is off the loss by a share of sqrt(rate * N + added) / N, where `rate` of the samples
    change and `added` ones are there always.
    """
    if loss >= allowed:
        return None
    count, added = len(paired.weights), len(ONE_LOST_ONE_WON) if paired.right_or_wrong else 0
    rate = float((paired.reference != paired.package).mean())
    if rate * count + added == 0:
        return None
    square = ((high - loss) * count) ** 2 / (rate * count + added)
    # (high - loss) = c * sqrt(rate * N + added) / N, solved for N at which it equals the gap.
    gap, half = allowed - loss, square * rate / 2
    needed = (half + math.sqrt(half**2 + gap**2 * square * added)) / gap**2
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)  # two that say something
    return digits * math.ceil(needed / digits) if needed < _MOST_WANTED else None


def _changed(
    paired: PairedScores, gain: Float64Array, place: Callable[[int], str]
) -> list[parity.ChangedSample]:
    """Return the samples that lost most, then those that gained least; of equals, the first."""
    with np.errstate(invalid="ignore"):
        scores = np.abs(paired.reference / paired.weights)
        # Relative: scores of a perplexity are losses of any size.
        (changed,) = np.nonzero(np.abs(gain) > _ROUNDING * scores)  # NaN is not
    order = changed[np.argsort(gain[changed], kind="stable")][:_MOST_SHOWN]

    def of(values: IntArray | None, index: int) -> int | None:
        return None if values is None else int(values[index])

    return [
        parity.ChangedSample(
            sample=int(paired.numbers[index]),
            file=place(int(paired.numbers[index])),
            reference_score=float(paired.reference[index] / paired.weights[index]),
            package_score=float(paired.package[index] / paired.weights[index]),
            label=of(paired.labels, index),
            reference_class=of(paired.reference_classes, index),
            package_class=of(paired.package_classes, index),
        )
        for index in map(int, order)
    ]


# What a report says of metrics of a task.

# A page has the drawing, and less room beside it.
_CELLS: tuple[tuple[str | doc.Column, Callable[[parity.MetricParity], doc.Cell]], ...] = (
    ("metric", lambda metric: metric.metric),
    (doc.Column("loss as a share of what may be lost", doc.PAGE), lambda metric: _drawn(metric)),
    ("#reference", lambda metric: parity.shown(metric.metric, metric.reference)),
    ("#this", lambda metric: parity.shown(metric.metric, metric.package)),
    (doc.Column("#difference, 95 % interval", doc.PAGE), lambda metric: _change(metric)),
    (
        doc.Column("#difference", doc.TEXT),
        lambda metric: parity.shown_gap(metric.metric, metric.difference),
    ),
    (doc.Column("#95 % interval", doc.TEXT), lambda metric: _bounds(metric)),
    ("#may be lost", lambda metric: parity.shown_gap(metric.metric, metric.allowed_drop)),
    (doc.Column("#samples", doc.DETAILED), lambda metric: metric.samples),
    (doc.Column("#worse, better", doc.PAGE), lambda metric: f"{metric.worse}, {metric.improved}"),
    (doc.Column("#worse", doc.DETAILED_TEXT), lambda metric: metric.worse),
    (doc.Column("#better", doc.DETAILED_TEXT), lambda metric: metric.improved),
    (doc.Column("#p", doc.DETAILED), lambda metric: figure(metric.p_value)),
    (
        "verdict",
        lambda metric: doc.Status(shown_verdict(metric.verdict), metric.verdict == "passed"),
    ),
)
"""The head of each column, and what stands in it."""
_ABOUT = (
    "The dot is what the metric lost, the line through it its 95 % interval, in shares of what may"
    " be lost: all of it has to be left of the upright line at 1. Left of 0 the metric is better"
    " than the reference's."
)


def accuracy_section(metrics: Sequence[parity.MetricParity], id_: str) -> doc.Section:
    """Return all metrics, how each came about, and the samples that changed."""
    # The axis shows at least what may be lost twice over, and half as much gained.
    rows, least = [[cell(metric) for _, cell in _CELLS] for metric in metrics], (-1.0, 2.0)
    columns = tuple(head for head, _ in _CELLS)
    table = doc.Table("accuracy", columns, rows, id_, axis="numbers", axis_holds=least)
    blocks: list[doc.Block] = [doc.Text(_ABOUT, shown=doc.PAGE), table]
    for metric in metrics:
        blocks += (doc.Text(_how(metric)), *_document_changed(metric))
    return doc.Section("Accuracy", tuple(blocks))


def accuracy_fact(metric: parity.MetricParity) -> doc.Fact:
    """Return what the metric is here, beside the reference's."""
    here, there = (parity.shown(metric.metric, x) for x in (metric.package, metric.reference))
    note = f"{there} in the reference: {shown_verdict(metric.verdict)}"
    return doc.Fact(metric.metric, here, note)


def accuracy_case(metric: parity.MetricParity) -> doc.CiCase:
    """Return the metric as a test case; not knowing is no pass."""
    name = f"{metric.metric} [{metric.against}]"
    if metric.reason is not None:
        return doc.CiCase(
            "accuracy", name, "failure", f"{shown_verdict(metric.verdict)}: {metric.reason}"
        )
    before, now = (
        parity.shown(metric.metric, value) for value in (metric.reference, metric.package)
    )
    values = f"{before}, now {now}"
    return doc.CiCase("accuracy", name, "passed", f"{values}, {metric.samples} samples")


def _bounds(metric: parity.MetricParity) -> str | None:
    return None if metric.interval is None else parity.shown_gap(metric.metric, *metric.interval)


def _change(metric: parity.MetricParity) -> str:
    return f"{parity.shown_gap(metric.metric, metric.difference)}, {_bounds(metric) or 'none'}"


def _drawn(metric: parity.MetricParity) -> doc.Drawn:
    """Draw the loss and its interval in shares of the allowed loss, if that is known."""
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


def _how(metric: parity.MetricParity) -> str:
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


def _document_changed(metric: parity.MetricParity) -> Iterator[doc.Folded]:
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
