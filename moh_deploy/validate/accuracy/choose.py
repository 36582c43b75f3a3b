"""Choose the metrics that score an output: those asked for, or the one that the labels tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.user_code import find_callable, user_code
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.metrics import IntArray, Metric, MetricScores, has_nan
from moh_deploy.validate.accuracy.task import (
    BUILT_IN_METRICS,
    Labelling,
    ScoreFunction,
    Task,
    UserMetric,
    check_integers,
    check_range,
)
from moh_deploy.validate.reference.differences import Float64Array

# Metrics of class labels: top-k accuracy, and perplexity.


@dataclass(frozen=True)
class TopK:
    """Share of labels that are among the k likeliest classes; of classes that tie, the first wins.

    Attributes:
        k: How many classes may be named.
        output: Logits, or anything that rises with them: [N, C], or [N, S, C] for a label a token.
        labelling: How labels are read.
    """

    k: int
    output: str
    labelling: Labelling = field(default_factory=Labelling)

    better: Better = "higher"

    @property
    def name(self) -> str:
        return f"top-{self.k}"

    def score(self, outputs: Mapping[str, Array], labels: Array) -> MetricScores:
        """Count the right labels of each sample; see `Metric.score`."""
        logits = outputs[self.output]
        self.labelling.check(labels, logits, self.output)
        # Accuracy of 1 on both sides would pass for a proof.
        if logits.shape[-1] <= self.k:
            raise ConfigError(
                f"output '{self.output}' has {logits.shape[-1]} classes, so {self.name} is always"
                " right: choose another --metric."
            )
        pairs = [self.labelling.pairs(*logit) for logit in zip(logits, labels, strict=True)]
        right = np.array([(_ranks(*pair) < self.k).sum() for pair in pairs], np.float64)
        ignored = self.labelling.left_out(labels)
        weights = np.array([len(found) for _, found in pairs], np.float64)
        classes = logits.argmax(axis=-1).astype(np.int64) if labels.ndim == 1 else None
        return MetricScores(np.where(has_nan(logits), np.nan, right), weights, ignored, classes)

    @property
    def shifted(self) -> bool:
        return self.labelling.shifted

    def value(self, means: Float64Array) -> Float64Array:
        """Return the share of right labels."""
        return means


def _ranks(logits: Array, labels: IntArray) -> IntArray:
    """Count the classes that rank before each label: [P, C] and [P] to [P]."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # [P, 1]
    before = np.arange(logits.shape[1]) < labels[:, None]
    # Ties count by index, as argmax and ONNX's TopK do. NaN is ahead of nothing; `score` finds it.
    ahead = np.greater(logits, own) | (np.equal(logits, own) & before)
    return cast(IntArray, ahead.sum(axis=1))


@dataclass(frozen=True)
class Perplexity:
    """exp(-mean log softmax(logits)[label]), over all tokens of all sequences, in float64.

    Attributes:
        output: Logits [N, S, V].
        labelling: How labels are read.
    """

    output: str
    labelling: Labelling = field(default_factory=Labelling)

    better: Better = "lower"
    name: str = "perplexity"

    def score(self, outputs: Mapping[str, Array], labels: Array) -> MetricScores:
        """Add up the negative log-likelihoods of each sequence; see `Metric.score`."""
        logits = outputs[self.output]
        self.labelling.check(labels, logits, self.output)
        # One sequence at a time: float64 logits of a batch would be twice its memory.
        losses = [
            _losses(*self.labelling.pairs(*logit)) for logit in zip(logits, labels, strict=True)
        ]
        # Sums and counts, not means: a long sequence weighs as many tokens as it has.
        totals = np.array([loss.sum() for loss in losses], np.float64)
        ignored = self.labelling.left_out(labels)
        weights = np.array([len(loss) for loss in losses], np.float64)
        # NaN at a position that is ignored shows as well: the output is wrong, scored or not.
        return MetricScores(np.where(has_nan(logits), np.nan, totals), weights, ignored)

    @property
    def shifted(self) -> bool:
        return self.labelling.shifted

    def value(self, means: Float64Array) -> Float64Array:
        """Return exp of the mean; infinity where that is out of range."""
        with np.errstate(over="ignore"):
            return np.exp(means)


def _losses(logits: Array, labels: IntArray) -> Float64Array:
    """Return log(sum(exp(logits))) - logits[label]: [P, V] and [P] to [P]."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The largest logit is taken out of both terms: exp does not overflow, and the loss is the
        # same.
        shifted = wide - wide.max(axis=1, keepdims=True)
        own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
        losses: Float64Array = np.log(np.exp(shifted).sum(axis=1)) - own
    return losses


def choose_metrics(task: Task, labels: Array, outputs: Sequence[TensorInfo]) -> tuple[Metric, ...]:
    """Return the metrics that are asked for, or the one that the shape of the labels tells.

    Args:
        task: What was asked for.
        labels: Of all samples, or of some.
        outputs: The model's.

    Raises:
        ConfigError: A metric is unknown, or labels and outputs are not what it is of.
    """
    # [N] labels are classes of samples, [N, S] tokens of sequences.
    names = task.metrics or (_by_shape(labels),)
    if len(set(names)) != len(names):
        raise ConfigError(f"a metric is named twice: {', '.join(map(_name, names))}.")
    # Only of a function that the user wrote it is unknown whether more is better.
    functions = [name for name in names if callable(name) or ":" in name]
    if task.better is not None and not functions:
        raise ConfigError(
            f"better is '{task.better}', but which values of {', '.join(map(_name, names))} are"
            " better is known: leave it out."
        )
    return tuple(_metric(name, task, labels, outputs) for name in names)


def _by_shape(labels: Array) -> str:
    if labels.ndim > 2:
        raise ConfigError(
            f"labels are {list(labels.shape)}, which tells no metric: [N] is scored by top-1,"
            " [N, S] by perplexity.",
            hint="Name one of your own: --metric MODULE:FUNCTION.",
        )
    return "top-1" if labels.ndim == 1 else "perplexity"


def _metric(
    name: str | ScoreFunction, task: Task, labels: Array, outputs: Sequence[TensorInfo]
) -> Metric:
    if callable(name) or ":" in name:
        return _user_metric(name, task, outputs)
    if name not in BUILT_IN_METRICS:
        raise ConfigError(
            f"metric '{name}' is none of {', '.join(BUILT_IN_METRICS)}, nor MODULE:FUNCTION.",
            hint=did_you_mean(name, BUILT_IN_METRICS) or None,
        )
    check_integers(labels)
    _check_rank(name, labels, task.labelling)
    info = _scored_output(task.output, labels, outputs)
    # A dynamic number of classes is checked batch by batch instead, in `Labelling.check`.
    if isinstance(info.shape[-1], int):
        check_range(labels, info.shape[-1], info.name, task.labelling.ignore)
    if name == "perplexity":
        return Perplexity(info.name, task.labelling)
    return TopK(int(name.removeprefix("top-")), info.name, task.labelling)


def _user_metric(
    name: str | ScoreFunction, task: Task, outputs: Sequence[TensorInfo]
) -> UserMetric:
    if task.better is None:
        raise ConfigError(
            f"whether higher or lower scores of metric '{_name(name)}' are better is not said.",
            hint="Say it: --better higher, or --better lower.",
        )
    if task.output is not None:
        _named(task.output, outputs)
    if callable(name):
        return UserMetric(_name(name), task.better, name, task.output)
    with user_code(task.code_dirs):
        found = find_callable(name, what="metric", code_dirs=task.code_dirs)
    return UserMetric(name, task.better, found, task.output)


def _name(metric: str | ScoreFunction) -> str:
    if isinstance(metric, str):
        return metric
    module = getattr(metric, "__module__", type(metric).__module__)
    return f"{module}:{getattr(metric, '__qualname__', type(metric).__qualname__)}"


def _check_rank(name: str, labels: Array, labelling: Labelling) -> None:
    shape = list(labels.shape)
    if name == "perplexity" and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}; perplexity is of [N, S], a token at each position.")
    if labels.ndim not in (1, 2):
        raise ConfigError(f"labels are {shape}; {name} is of [N], or of [N, S] tokens.")
    if labelling.shifted and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}, and only those of [N, S] tokens can be shifted.")


def _scored_output(name: str | None, labels: Array, outputs: Sequence[TensorInfo]) -> TensorInfo:
    """Return the output with an axis of classes behind those of the labels."""
    fitting = [output for output in outputs if _fits(output, labels)]
    if name is not None:
        found = _named(name, outputs)
        if found not in fitting:
            raise ConfigError(_no_fit(f"output '{name}' is", [found], labels), hint=_hint(labels))
        return found
    # Taking the first of several would score something the user did not mean.
    if len(fitting) != 1:
        if not fitting:
            raise ConfigError(_no_fit("outputs are", outputs, labels), hint=_hint(labels))
        names = ", ".join(f"'{info.name}'" for info in fitting)
        raise ConfigError(
            f"labels {list(labels.shape)} could be those of outputs {names}.",
            hint=f"Say which: --label-output {fitting[0].name}.",
        )
    return fitting[0]


def _named(name: str, outputs: Sequence[TensorInfo]) -> TensorInfo:
    for output in outputs:
        if output.name == name:
            return output
    names = [output.name for output in outputs]
    raise ConfigError(
        f"there is no output '{name}' to score: the model has {', '.join(names)}.",
        hint=did_you_mean(name, names) or None,
    )


def _fits(output: TensorInfo, labels: Array) -> bool:
    if "float" not in output.dtype or len(output.shape) != labels.ndim + 1:
        return False
    # The batch axis is left out, since labels of all samples are cut into batches; [N, S, C] has to
    # fit [N, S] between it and the classes.
    pairs = zip(output.shape[1:-1], labels.shape[1:], strict=True)
    return all(isinstance(size, str) or size == of_labels for size, of_labels in pairs)


def _no_fit(start: str, outputs: Sequence[TensorInfo], labels: Array) -> str:
    shapes = ", ".join(f"{output.dtype}[{', '.join(map(str, output.shape))}]" for output in outputs)
    letters = "NS"[: labels.ndim]
    return (
        f"{start} {shapes}; labels {list(labels.shape)} take one of floats,"
        f" [{', '.join((*letters, 'classes'))}]."
    )


def _hint(labels: Array) -> str | None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "Labels with an axis of size 1 are not those of one class a sample: labels[:, 0]."
    if labels.ndim == 2:
        return "One-hot labels are no numbers of classes: labels.argmax(axis=1)."
    return "Another form is scored by a function of yours: --metric MODULE:FUNCTION."
