"""The task of a model: labels, and the way its outputs are scored with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.metrics import IntArray, MetricScores, has_nan
from moh_deploy.validate.reference.differences import Float64Array

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
        """Refuse labels that an output does not fit, or that are none of its classes.

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
        # A function may turn NaN into a score, by argmax say: the sample has none all the same.
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
