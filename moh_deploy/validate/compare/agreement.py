"""Measure how far two sides agree: top-1 classes of outputs, and heads of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class Top1Agreement:
    """The rows of an output that have the same top-1 class as the reference.

    Attributes:
        same: Their number.
        of: The number of all rows.
    """

    same: int
    of: int

    def __add__(self, other: Top1Agreement) -> Top1Agreement:
        return Top1Agreement(self.same + other.same, self.of + other.of)


@dataclass(frozen=True)
class Flips:
    """Tokens that chose other heads than in the reference, each counted once a layer.

    Attributes:
        tokens: So many.
        of: Of so many.
    """

    tokens: int
    of: int


def holds_classes(output: TensorInfo) -> bool:
    """Tell whether an output looks like logits of classes or tokens: [N, C], [N, S, C], C fixed."""
    classes = output.shape[-1] if len(output.shape) in (2, 3) else None
    return "float" in output.dtype and isinstance(classes, int) and classes > 1


def top_1_agreement(got: Array, reference: Array) -> Top1Agreement:
    """Count the rows of two arrays [..., C] that have their largest number at the same place."""
    same = got.argmax(axis=-1) == reference.argmax(axis=-1)
    return Top1Agreement(int(np.count_nonzero(same)), int(same.size))
