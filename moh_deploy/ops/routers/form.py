"""Say what a router form is, to whoever has to report, lower, record or judge a router of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moh_deploy.system.npz import Array

Margins = Callable[[Array, int], NDArray[np.float32]]


def gaps_of(scores: Array, top_k: int) -> NDArray[np.float32]:
    """Return by how much each token prefers its last chosen head to its first unchosen one.

    Args:
        scores: [..., R].
        top_k: Heads that a token chooses.

    Returns:
        [...]; infinite where every head is chosen, NaN where a score is NaN.
    """
    if top_k >= scores.shape[-1]:
        return np.full(scores.shape[:-1], np.inf, np.float32)
    ranked = -np.sort(-scores.astype(np.float64), axis=-1)  # [..., R]
    with np.errstate(invalid="ignore"):  # infinities of one sign have no difference
        gaps: NDArray[np.float32] = (ranked[..., top_k - 1] - ranked[..., top_k]).astype(np.float32)
    gaps[np.isnan(scores).any(axis=-1)] = np.nan
    return gaps


@dataclass(frozen=True)
class RouterForm:
    """One way in which routers make gates of logits.

    How it is found in a program says `frontend/recognize/routers/<name>.py`.

    Attributes:
        name: What manifests and reports call it.
        doc: What it computes, in a sentence.
        ranks: What heads are compared by. `probabilities`: the softmax of the routed logits.
            `logits`: those themselves, because they are scores that a softmax would bring closer.
        margins: How far a choice among scores [..., R] is from another one, [...].
        scoring: ONNX operators that may make the routed logits of what a projection gives, element
            by element. They stay in float32 with the MoHRouter that reads them.
        weighing: ONNX operators that may stand between a MoHRouter's gates, always their first
            input, and the gates of the layer. They move no token.
        is_constant: No input changes the gates: they are weights, and no operator makes them.
    """

    name: str
    doc: str
    ranks: Literal["probabilities", "logits"] = "probabilities"
    margins: Margins = gaps_of
    scoring: tuple[str, ...] = ("Add", "Clip", "Div", "Mul", "Neg", "Sub")
    weighing: tuple[str, ...] = ()
    is_constant: bool = False

    def scores(self, logits: Array) -> NDArray[np.float64]:
        """Return what heads are compared by.

        Args:
            logits: The routed logits [..., R].
        """
        wide = logits.astype(np.float64)
        if self.ranks == "logits" or not wide.size:
            return wide
        with np.errstate(invalid="ignore"):  # infinities of one sign have no difference
            exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        scores: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return scores
