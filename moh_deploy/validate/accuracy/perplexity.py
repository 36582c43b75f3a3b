"""Perplexity: exp of the mean negative log-likelihood of a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.class_labels import Labelling
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.metrics import IntArray, MetricScores, has_nan
from moh_deploy.validate.differences import Float64Array


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
        losses = [_losses(*self.labelling.pairs(*one)) for one in zip(logits, labels, strict=True)]
        # Sums and counts, not means: a long sequence weighs as many tokens as it has.
        totals = np.array([one.sum() for one in losses], np.float64)
        ignored = self.labelling.left_out(labels)
        weights = np.array([len(one) for one in losses], np.float64)
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
