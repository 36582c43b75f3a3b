"""The interface of metrics: a score for each sample, and a value for the mean of scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.reference.differences import Float64Array

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MetricScores:
    """Scores of the samples of a batch."""

    totals: Float64Array  # Of each sample, [B]; NaN where an output is
    weights: Float64Array  # How many labels each total adds up, [B]; 0 leaves a sample out
    ignored: int = 0  # How many labels were left out
    # The likeliest class of each sample, [B]; None where a sample has no one class.
    classes: IntArray | None = None


class Metric(Protocol):
    """A measure of accuracy: it scores samples, and turns mean scores into the value to report."""

    @property
    def name(self) -> str:
        """The metric's name in reports."""

    @property
    def output(self) -> str | None:
        """The output that it reads; None for all."""

    @property
    def better(self) -> Better:
        """Whether higher or lower values are better."""

    @property
    def shifted(self) -> bool:
        """Outputs at a position are scored with the label of the next."""

    def score(self, outputs: Mapping[str, Array], labels: Array) -> MetricScores:
        """Score each sample of a batch.

        Raises:
            ConfigError: Outputs or labels are not what the metric is of.
        """

    def value(self, means: Float64Array) -> Float64Array:
        """Return the metric for mean scores [R] of a label: exp for perplexity, or as they are."""


def has_nan(outputs: Array) -> NDArray[np.bool_]:
    """Return for each sample of [B, ...] whether any number is NaN, as [B]."""
    if outputs.dtype.kind in "biu":
        return np.zeros(len(outputs), np.bool_)
    # Sample by sample: a boolean copy of a whole batch of logits would be held for nothing.
    return np.array([bool(np.isnan(output).any()) for output in outputs], np.bool_)
