"""Choose the metrics that score an output: those asked for, or the one that the labels tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.user_code import find_callable, user_code
from moh_deploy.validate.accuracy import task as tasks
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.task import IntArray, Metric, MetricScores, has_nan
from moh_deploy.validate.reference.differences import Float64Array

# Metrics of class labels: top-k accuracy, and perplexity.


@dataclass(frozen=True)
class TopK:
    """Share of labels among the k likeliest classes; of classes that tie, the first wins."""

    k: int  # How many classes may be named
    # Logits, or anything that rises with them: [N, C], or [N, S, C] for a label a token.
    output: str
    labelling: tasks.Labelling = field(default_factory=tasks.Labelling)

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
        pairs = [self.labelling.pairs(*pair) for pair in zip(logits, labels, strict=True)]
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
    """exp(-mean log softmax(logits)[label]), over all tokens of all sequences, in float64."""

    output: str
    labelling: tasks.Labelling = field(default_factory=tasks.Labelling)

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


def choose_metrics(
    task: tasks.Task, labels: Array, outputs: Sequence[TensorInfo]
) -> tuple[Metric, ...]:
    """Return the metrics that are asked for, or the one that the shape of the labels tells.

    Raises:
        ConfigError: A metric is unknown, or labels and outputs are not what it is of.
    """
    # [N] labels are classes of samples, [N, S] tokens of sequences.
    names = task.metrics or {1: ("top-1",), 2: ("perplexity",)}.get(labels.ndim, ())
    if not names:
        raise ConfigError(
            f"labels are {list(labels.shape)}, which tells no metric: [N] is scored by top-1,"
            " [N, S] by perplexity.",
            hint="Name one of your own: --metric MODULE:FUNCTION.",
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"a metric is named twice: {', '.join(map(_name, names))}.")
    # Only of a function that the user wrote it is unknown whether more is better.
    if task.better is not None and not any(callable(name) or ":" in name for name in names):
        raise ConfigError(
            f"better is '{task.better}', but which values of {', '.join(map(_name, names))} are"
            " better is known: leave it out."
        )
    return tuple(
        _user_metric(name, task, outputs)
        if callable(name) or ":" in name
        else _built_in(name, task, labels, outputs)
        for name in names
    )


def _built_in(name: str, task: tasks.Task, labels: Array, outputs: Sequence[TensorInfo]) -> Metric:
    if name not in tasks.BUILT_IN_METRICS:
        raise ConfigError(
            f"metric '{name}' is not one of {', '.join(tasks.BUILT_IN_METRICS)}"
            " or MODULE:FUNCTION.",
            hint=did_you_mean(name, tasks.BUILT_IN_METRICS) or None,
        )
    tasks.check_integers(labels)
    shape = list(labels.shape)
    if name == "perplexity" and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}; perplexity is of [N, S], a token at each position.")
    if labels.ndim not in (1, 2):
        raise ConfigError(f"labels are {shape}; {name} is of [N], or of [N, S] tokens.")
    if task.labelling.shifted and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}, and only those of [N, S] tokens can be shifted.")
    info = _scored_output(task.output, labels, outputs)
    # A dynamic number of classes is checked batch by batch instead, in `Labelling.check`.
    if isinstance(info.shape[-1], int):
        tasks.check_range(labels, info.shape[-1], info.name, task.labelling.ignore)
    if name == "perplexity":
        return Perplexity(info.name, task.labelling)
    return TopK(int(name.removeprefix("top-")), info.name, task.labelling)


def _user_metric(
    name: str | tasks.ScoreFunction, task: tasks.Task, outputs: Sequence[TensorInfo]
) -> tasks.UserMetric:
    if task.better is None:
        raise ConfigError(
            f"whether higher or lower scores of metric '{_name(name)}' are better is not said.",
            hint="Say it: --better higher, or --better lower.",
        )
    if task.output is not None:
        _named(task.output, outputs)
    if callable(name):
        return tasks.UserMetric(_name(name), task.better, name, task.output)
    with user_code(task.code_dirs):
        found = find_callable(name, what="metric", code_dirs=task.code_dirs)
    return tasks.UserMetric(name, task.better, found, task.output)


def _name(metric: str | tasks.ScoreFunction) -> str:
    if isinstance(metric, str):
        return metric
    module = getattr(metric, "__module__", type(metric).__module__)
    return f"{module}:{getattr(metric, '__qualname__', type(metric).__qualname__)}"


def _scored_output(name: str | None, labels: Array, outputs: Sequence[TensorInfo]) -> TensorInfo:
    """Return the output with an axis of classes behind those of the labels."""
    asked = outputs if name is None else [_named(name, outputs)]
    fitting = [output for output in asked if _fits(output, labels)]
    if not fitting:
        start = "outputs are" if name is None else f"output '{name}' is"
        shapes = ", ".join(f"{info.dtype}[{', '.join(map(str, info.shape))}]" for info in asked)
        letters = "NS"[: labels.ndim]
        raise ConfigError(
            f"{start} {shapes}; labels {list(labels.shape)} take one of floats,"
            f" [{', '.join((*letters, 'classes'))}].",
            hint=_hint(labels),
        )
    # Taking the first of several would score something the user did not mean.
    if len(fitting) != 1:
        names = ", ".join(f"'{info.name}'" for info in fitting)
        raise ConfigError(
            f"labels {list(labels.shape)} could be those of outputs {names}.",
            hint=f"Say which: --label-output {fitting[0].name}.",
        )
    return fitting[0]


def _named(name: str, outputs: Sequence[TensorInfo]) -> TensorInfo:
    found = {output.name: output for output in outputs}
    if name not in found:
        raise ConfigError(
            f"there is no output '{name}' to score: the model has {', '.join(found)}.",
            hint=did_you_mean(name, list(found)) or None,
        )
    return found[name]


def _fits(output: TensorInfo, labels: Array) -> bool:
    if "float" not in output.dtype or len(output.shape) != labels.ndim + 1:
        return False
    # The batch axis is left out, since labels of all samples are cut into batches; [N, S, C] has to
    # fit [N, S] between it and the classes.
    pairs = zip(output.shape[1:-1], labels.shape[1:], strict=True)
    return all(isinstance(size, str) or size == of_labels for size, of_labels in pairs)


def _hint(labels: Array) -> str | None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "Labels with an axis of size 1 are not those of one class a sample: labels[:, 0]."
    if labels.ndim == 2:
        return "One-hot labels are no numbers of classes: labels.argmax(axis=1)."
    return "Another form is scored by a function of yours: --metric MODULE:FUNCTION."
