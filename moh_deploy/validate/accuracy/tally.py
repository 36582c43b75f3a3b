"""Collect the scores of both sides batch by batch, keeping a few numbers for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.accuracy.metrics import IntArray, Metric, MetricScores
from moh_deploy.validate.reference.differences import Float64Array
from moh_deploy.validate.reference.valid_tokens import ValidTokens


@dataclass(frozen=True)
class PairedScores:
    """Scores of all samples that count, paired."""

    reference: Float64Array  # Totals, [N]
    package: Float64Array
    weights: Float64Array  # How many labels a total adds up, [N], 1 or more
    numbers: IntArray  # Of the samples, over all files, [N]
    labels: IntArray | None  # Class of each sample, [N]; None where a sample has no one class
    reference_classes: IntArray | None  # The likeliest class, [N]; None likewise
    package_classes: IntArray | None
    ignored: int = 0

    @property
    def finite(self) -> NDArray[np.bool_]:
        """A mask of the samples that both sides have a finite score for, [N]."""
        return np.isfinite(self.reference) & np.isfinite(self.package)

    @property
    def right_or_wrong(self) -> bool:
        """Whether every sample is one label, and its score 1 or 0."""
        totals = np.concatenate([self.reference, self.package])
        # Only then McNemar's test applies, and two samples are added for the interval.
        return bool((self.weights == 1).all() and np.isin(totals, (0.0, 1.0)).all())


@dataclass
class Tally:
    """Scores of one metric."""

    metric: Metric
    _reference: list[MetricScores] = field(default_factory=list)
    _package: list[MetricScores] = field(default_factory=list)
    _labels: list[Array] = field(default_factory=list)

    def add(
        self, reference: Mapping[str, Array], package: Mapping[str, Array], labels: Array
    ) -> None:
        """Score a batch on both sides.

        Raises:
            ConfigError: Outputs or labels are not what the metric is of.
        """
        output = self.metric.output
        if output is not None and output not in reference:
            raise ConfigError(
                f"the reference has no output '{output}', which is scored by {self.metric.name}."
            )
        self._reference.append(self.metric.score(reference, labels))
        self._package.append(self.metric.score(package, labels))
        self._labels.append(labels)

    def paired(self) -> PairedScores:
        """Return all samples but those without a label that counts.

        Raises:
            ConfigError: There are none.
        """
        weights = np.concatenate([scores.weights for scores in self._reference])
        # Weights depend on labels alone, so those of the reference stand for both sides.
        (kept,) = np.nonzero(weights)
        if not kept.size:
            raise ConfigError("every label is one to be ignored: there is nothing to score.")
        classes = _classes(self._reference, kept)
        labels = None if classes is None else np.concatenate(self._labels).astype(np.int64)[kept]
        return PairedScores(
            reference=np.concatenate([scores.totals for scores in self._reference])[kept],
            package=np.concatenate([scores.totals for scores in self._package])[kept],
            weights=weights[kept],
            # Before samples are left out: these are the places in the files.
            numbers=kept.astype(np.int64),
            labels=labels,
            reference_classes=classes,
            package_classes=_classes(self._package, kept),
            ignored=sum(scores.ignored for scores in self._reference),
        )


@dataclass(frozen=True)
class SampleFiles:
    """The files that samples are from, in order."""

    files: tuple[str, ...]
    counts: tuple[int, ...]

    def place(self, number: int) -> str:
        """Return `val.npz[17]`."""
        ends = np.cumsum(self.counts)
        # `right`: a sample whose number is the end of a file is the first of the next.
        index = int(np.searchsorted(ends, number, side="right"))
        return f"{self.files[index]}[{number - int(ends[index]) + self.counts[index]}]"


def _classes(scores: list[MetricScores], kept: IntArray) -> IntArray | None:
    found = [score.classes for score in scores if score.classes is not None]
    # Either every batch has one class a sample, or none counts.
    return np.concatenate(found)[kept] if len(found) == len(scores) else None


@dataclass(frozen=True)
class Scored:
    """One run."""

    # Name to array, [B, ...], for the outputs that the reference has.
    reference: Mapping[str, Array]
    package: Mapping[str, Array]  # The same of the package, for all outputs
    labels: Array

    def of_valid(self, valid: ValidTokens | None, ignore: int) -> Scored:
        """Return it with labels of padding ignored, and 0 for what is computed there: NaN, maybe.

        Args:
            valid: Which tokens count; None: all.
            ignore: What labels are that do not count.
        """
        if valid is None:
            return self
        # Without the copies that fill up a batch, which have no labels.
        labels, mask = self.labels, valid.mask[: len(self.labels)]
        is_placed = labels.shape == mask.shape
        # Zeros on both sides: NaN at padding would leave the whole sample without a score.
        reference, package = (
            {name: _blank(array, valid.mask, is_placed) for name, array in side.items()}
            for side in (self.reference, self.package)
        )
        if is_placed and labels.dtype.kind in "iu":
            labels = np.where(mask, labels.astype(np.int64), ignore)
        return Scored(reference, package, labels)


def _blank(array: Array, mask: BoolArray, is_placed: bool) -> Array:
    # Outputs without tokens stay as they are: [B, classes], which may be as many as tokens.
    if array.shape[:2] != mask.shape or (array.ndim == 2 and not is_placed):
        return array
    blank: Array = array.copy()
    blank[~mask] = 0
    return blank
