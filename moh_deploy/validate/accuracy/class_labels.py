"""Labels that are class numbers: what they fit, and what they must not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.metrics import IntArray


@dataclass(frozen=True)
class Labelling:
    """The conventions by which labels are read.

    Attributes:
        ignore: Labels of this number are left out.
        shifted: The output at a position is scored with the label of the next one: labels are the
            tokens that the model was given.
    """

    # What PyTorch's cross_entropy ignores.
    ignore: int = -100
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
        """Return the logits [P, C] and labels [P] that are scored, of one sample.

        Args:
            logits: [C], or [S, C].
            labels: A number, or [S].
        """
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
