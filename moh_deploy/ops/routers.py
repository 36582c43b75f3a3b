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


# Constant routing: learned queries choose their heads, so no input changes the gates.
#
# The gates are computed once, when the model is exported, and are weights of the package: nothing
# is ranked when it runs. The first layer of a decoder with learned queries (DETR) and latent
# cross-attention (Perceiver) have such routers.

CONSTANT = RouterForm(
    "constant", "gates that no input changes, computed at export", is_constant=True
)


# Any other router: it stays as the operators that the model has.

CUSTOM = RouterForm("custom", "a router of no form above; it stays as ordinary operators")


# Mask routing: the k best heads run, with gates of 1.

MASK = RouterForm("mask", "the best heads, with gates of 1")


# Query-norm routing: the heads with the longest queries run, with gates of 1.
#
# It is a mask whose logits are made of the projection that makes the queries: the form of the
# language models that were published with arXiv 2410.11842.

QUERY_NORM = RouterForm("query_norm", "the heads whose queries are the longest, with gates of 1")


# Ranked routing: a MoHRouter keeps the k best heads, and plain operators weigh them by what they
# were ranked by: probabilities or sigmoids, as they are or divided by their sum.
#
# gates = factor * w / (sum of the chosen w + epsilon) for the k largest w, else 0
#
# The MoHRouter ranks the logits, of which these weights are an increasing function: two heads that
# both have a sigmoid of nearly 0 are told apart by them. See docs/adr/0025.

RANKED = RouterForm(
    "ranked",
    "the best heads, weighed in a way of its own by what they are ranked by",
    scoring=("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh"),
    weighing=("Concat", "Div", "Mul", "Slice"),
)


# Mixed routing: shared heads are weighed by logits of their own, in another way than routed ones.
#
# shared gates = factor * sigmoid(shared_logits) routed gates = those of a top_k or a ranked router
#
# The weights of the shared heads may be made in any way, with a sum that divides them or without; a
# first stage may weigh shared against routed heads, by a softmax of two logits, say. The MoHRouter
# gives shared heads gates of 1, and plain operators weigh them (docs/adr/0041).

MIXED = RouterForm(
    "mixed",
    "the best heads, and shared heads weighed by logits of their own",
    scoring=RANKED.scoring,
    weighing=RANKED.weighing,
)


# Scored routing: heads are ranked by another score than they are weighed by, such as probabilities
# with a bias that balances how often each head is chosen.
#
# gates = factor * w / (sum of the chosen w + epsilon) for the k largest scores, else 0
#
# The scores may lie close together and need not be logits: their softmax would make the gaps
# between them smaller than they are, so margins are taken of the scores themselves. See
# docs/adr/0025.

SCORED = RouterForm(
    "scored",
    "the best heads by one score, weighed by another",
    ranks="logits",
    scoring=("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh"),
    weighing=("Concat", "Div", "Mul", "Slice"),
)


# All heads shared: each token runs every head, weighed by a softmax.
#
# gates = H * softmax(shared_logits)
#
# Source: arXiv 2410.11842, section 3.2, with no routed heads.

SHARED = RouterForm("shared", "every head runs, weighed by a softmax")


# Top-k routing: the k best heads, weighed by their share of the k best probabilities.
#
# routed gates = factor * p / sum of the chosen p for the k largest p, else 0 with p =
# softmax(routed_logits) and factor = k, as in arXiv 2410.11842, or any other number
#
# Shared heads have a softmax of their own, or a gate of one number.

TOP_K = RouterForm(
    "top_k",
    "the best heads, weighed by their share of the probability",
    weighing=("Concat", "Mul", "Slice"),
)


# Two-stage routing: a first stage weighs the shared heads against the routed ones.
#
# shared gates = stage[0] * Sh * softmax(shared_logits) routed gates = stage[1] * k * p / sum of the
# chosen p for the k largest p, else 0 with p = softmax(routed_logits) and stage = 2 *
# softmax(stage_logits)
#
# Source: arXiv 2410.11842, section 3.2.

TWO_STAGE = RouterForm("two_stage", "shared heads and the best routed ones, weighed in two stages")


# The router forms: all that is known of one without torch, one a file.
#
# To add a form, write `<name>.py` here and `frontend/recognize/routers/<name>.py`, which finds it
# in a program, and name it in `FORMS`.

__all__ = ["FORMS", "SCORING", "WEIGHING", "RouterForm", "form_named"]

# In the order in which they are looked for. Where two compute the same, the first is reported. The
# last one fits every router.
FORMS = (CONSTANT, SHARED, TWO_STAGE, TOP_K, QUERY_NORM, MASK, RANKED, MIXED, SCORED, CUSTOM)

SCORING = frozenset(operator for form in FORMS for operator in form.scoring)
"""Operators that may make the logits of a MoHRouter, element by element."""

WEIGHING = frozenset(operator for form in FORMS for operator in form.weighing)
"""Operators that may stand between a MoHRouter's gates, their first input, and a layer's gates."""


def form_named(name: str) -> RouterForm:
    """Return the form that a manifest names."""
    return _BY_NAME[name]


_BY_NAME = {form.name: form for form in FORMS}
