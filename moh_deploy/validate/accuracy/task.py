"""The task of a model: labels, metrics, and the scores of its outputs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.reference.differences import Float64Array
from moh_deploy.validate.reference.valid_tokens import ValidTokens

# The interface of metrics: a score for each sample, and a value for the mean of scores.

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
        """Tell whether higher or lower values are better."""

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


# Labels that are class numbers: what they fit, and what they must not be.


@dataclass(frozen=True)
class Labelling:
    """The conventions by which labels are read."""

    # What PyTorch's cross_entropy ignores.
    ignore: int = -100
    # The output at a position is scored with the label of the next one: labels are the tokens that
    # the model was given.
    shifted: bool = False

    def left_out(self, labels: Array) -> int:
        """Count the labels that have the number to be ignored."""
        return int((_signed(labels) == self.ignore).sum())

    def check(self, labels: Array, logits: Array, output: str) -> None:
        """Refuse labels that do not fit an output or its classes.

        Raises:
            ConfigError: Naming the shapes, or the first such label.
        """
        if logits.shape[:-1] != labels.shape:
            raise ConfigError(
                f"output '{output}' is {list(logits.shape)} where labels are {list(labels.shape)};"
                f" expected {list(labels.shape)} and the classes."
            )
        check_range(labels, logits.shape[-1], output, self.ignore)

    def pairs(self, logits: Array, labels: Array) -> tuple[Array, IntArray]:
        """Return the logits [P, C] and labels [P] that are scored, of one sample."""
        if labels.ndim == 0:
            logits, labels = logits[None], labels[None]
        elif self.shifted:
            # [S - 1, C] and [S - 1]: the last position has no next token.
            logits, labels = logits[:-1], labels[1:]
        numbers = _signed(labels)
        counts = numbers != self.ignore
        return logits[counts], numbers[counts]


def check_range(labels: Array, num_classes: int, output: str, ignore: int) -> None:
    """Refuse labels that are no classes.

    Raises:
        ConfigError: Naming the first such label.
    """
    numbers = _signed(labels)
    wrong = (numbers != ignore) & ((numbers < 0) | (numbers >= num_classes))
    if not wrong.any():
        return
    at = [int(i) for i in np.argwhere(wrong)[0]]
    label = int(numbers[tuple(at)])
    mark = f"If {label} marks what is not to be scored: --ignore-label {label}."
    raise ConfigError(
        f"label {label} at {at} is no class of output '{output}', which has {num_classes}: 0 to"
        f" {num_classes - 1}.",
        # A negative number is usually a mark; one that is too large is a mistake.
        hint=mark if label < 0 else None,
    )


def check_integers(labels: Array) -> None:
    """Refuse labels of another dtype.

    Raises:
        ConfigError: Naming the dtype.
    """
    if labels.dtype.kind not in "iu":
        raise ConfigError(
            f"labels are {labels.dtype}, expected integers: numbers of classes or tokens.",
            hint="Convert them, labels.astype('int64'), or name a metric of your own that takes"
            " them: --metric MODULE:FUNCTION.",
        )


def same_tokens(labels: Array, inputs: Mapping[str, Array], labelling: Labelling) -> None:
    """Refuse labels that are scored at another position than they are meant for.

    Raises:
        ConfigError: They are the tokens that the model is given, or those already shifted.
    """
    for name, tokens in inputs.items():
        if tokens.dtype.kind not in "iu" or tokens.shape != labels.shape or labels.ndim != 2:
            continue
        # A model that sees a token scores well at naming it: the accuracy would be of nothing.
        if not labelling.shifted and _equal(labels, tokens, labelling.ignore):
            raise ConfigError(
                f"labels are the tokens of input '{name}', so each position would be scored with"
                " the token that it is given.",
                hint="If the next token is to be predicted: --shift-labels.",
            )
        # Shifted twice, each position would be scored with the token after the next.
        if labelling.shifted and _equal(labels[:, :-1], tokens[:, 1:], labelling.ignore):
            raise ConfigError(
                f"labels are those of input '{name}' shifted by one already.",
                hint="Leave out --shift-labels.",
            )


def _signed(labels: Array) -> IntArray:
    """Return integers in which a negative mark is one: unsigned, it is a large number."""
    return labels.astype(np.int64)


def _equal(labels: Array, tokens: Array, ignore: int) -> bool:
    counts = _signed(labels) != ignore
    same = labels[counts] == tokens[counts]
    # A single label may be equal by chance; so many, all of them, are not.
    return bool(same.size > 1 and same.all())


# A metric that the user wrote: a function of outputs and labels.

ScoreFunction = Callable[[Mapping[str, Array], Array], object]
"""Outputs by name, each [B, ...], and labels [B, ...], to the score of each sample, [B]."""


@dataclass(frozen=True)
class UserMetric:
    """A metric that is the mean of a user's function over samples."""

    name: str
    better: Better  # Which scores are better
    function: ScoreFunction
    output: str | None = None  # The one output that it is given, by name; None for all
    shifted: bool = False

    def score(self, outputs: Mapping[str, Array], labels: Array) -> MetricScores:
        """Ask the function; see `Metric.score`."""
        given = {self.output: outputs[self.output]} if self.output else dict(outputs)
        try:
            said = np.asarray(self.function(given, labels))
        except Exception as error:
            # Whatever the user's code raises is the user's to read, and no crash of ours.
            raise ConfigError(f"metric '{self.name}' raised {describe_error(error)}.") from error
        if said.shape != (len(labels),) or said.dtype.kind not in "biuf":
            raise ConfigError(
                f"metric '{self.name}' returned {said.dtype}{list(said.shape)} for"
                f" {len(labels)} samples, expected a number for each: [{len(labels)}].",
            )
        # A function may turn NaN into a score, by argmax say: the sample has no score all the same.
        of_samples = [array for array in given.values() if array.shape[:1] == (len(labels),)]
        broken = np.any([has_nan(sample) for sample in of_samples], axis=0)
        totals = np.where(broken, np.nan, said.astype(np.float64))
        return MetricScores(totals, np.ones(len(labels)))

    def value(self, means: Float64Array) -> Float64Array:
        """Return the mean score."""
        return means


BUILT_IN_METRICS = ("top-1", "top-5", "perplexity")


@dataclass(frozen=True)
class Task:
    """The labels, metrics and options that a user asked for."""

    # A file of `label_files`, a member of the inputs files, or the labels themselves.
    labels: Path | str | Array
    # Of `BUILT_IN_METRICS`, `MODULE:FUNCTION`, or functions; empty to choose by shapes.
    metrics: tuple[str | ScoreFunction, ...] = ()
    better: Better | None = None
    output: str | None = None  # The output that is scored; None to choose by shapes
    labelling: Labelling = field(default_factory=Labelling)
    batch_size: int | None = None  # How many samples run at once; None to choose
    code_dirs: tuple[Path, ...] = ()
    # The input, or member of the files, that says which tokens are no padding.
    valid_tokens: str | None = None


# Collect the scores of both sides batch by batch, keeping a few numbers for each sample.


@dataclass(frozen=True)
class PairedScores:
    """Scores of all samples that count, paired."""

    reference: Float64Array  # Totals, [N]
    package: Float64Array
    weights: Float64Array  # How many labels a total adds up, [N], 1 or more
    numbers: IntArray  # Of the samples, over all files, [N]
    labels: IntArray | None  # Class of each sample, [N]; None where a sample has no one class
    reference_classes: IntArray | None  # The likeliest class, [N]; or None
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
            ConfigError: They are missing.
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
        """Return a sample's place as text: `val.npz[17]`."""
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
    """The scores of one run."""

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
