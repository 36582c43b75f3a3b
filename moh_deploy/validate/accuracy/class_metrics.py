"""Metrics of class labels: top-k accuracy, and perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.class_labels import Labelling
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.metrics import IntArray, MetricScores, has_nan
from moh_deploy.validate.differences import Float64Array


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
