"""The router forms: all that is known of one without torch.

To add a form, describe it here, name it in `FORMS`, and write what finds it in a program:
`frontend/recognize/routers/forms.py`.
"""

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

    `frontend/recognize/routers/forms.py` finds it in a program.
    """

    name: str  # what manifests and reports call it
    doc: str  # what it computes, in a sentence
    # What heads are compared by. `probabilities`: the softmax of the routed logits. `logits`: those
    # themselves, because they are scores that a softmax would bring closer.
    ranks: Literal["probabilities", "logits"] = "probabilities"
    margins: Margins = gaps_of  # how far a choice among scores [..., R] is from another one, [...]
    # ONNX operators that may make the routed logits of what a projection gives, element by element.
    # They stay in float32 with the MoHRouter that reads them.
    scoring: tuple[str, ...] = ("Add", "Clip", "Div", "Mul", "Neg", "Sub")
    # ONNX operators that may stand between a MoHRouter's gates, always their first input, and the
    # gates of the layer. They move no token.
    weighing: tuple[str, ...] = ()
    # No input changes the gates: they are weights, and no operator makes them.
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


# In the order in which they are looked for. Where two compute the same, the first is reported.

CONSTANT = RouterForm(
    "constant", "gates that no input changes, computed at export", is_constant=True
)
"""Learned queries choose their heads: the gates are weights of the package, and nothing is ranked
when it runs. The first layer of a decoder with learned queries (DETR) and latent cross-attention
(Perceiver) have such routers."""

SHARED = RouterForm("shared", "every head runs, weighed by a softmax")
"""gates = H * softmax(shared_logits)

Source: arXiv 2410.11842, section 3.2, with no routed heads.
"""

TWO_STAGE = RouterForm("two_stage", "shared heads and the best routed ones, weighed in two stages")
"""A first stage weighs the shared heads against the routed ones.

    shared gates = stage[0] * Sh * softmax(shared_logits)
    routed gates = stage[1] * k * p / sum of the chosen p    for the k largest p, else 0
    with  p = softmax(routed_logits)  and  stage = 2 * softmax(stage_logits)

Source: arXiv 2410.11842, section 3.2.
"""

TOP_K = RouterForm(
    "top_k",
    "the best heads, weighed by their share of the probability",
    weighing=("Concat", "Mul", "Slice"),
)
"""routed gates = factor * p / sum of the chosen p    for the k largest p, else 0
    with  p = softmax(routed_logits)  and  factor = k, as in arXiv 2410.11842, or any other number

Shared heads have a softmax of their own, or a gate of one number.
"""

QUERY_NORM = RouterForm("query_norm", "the heads whose queries are the longest, with gates of 1")
"""A mask whose logits are made of the projection that makes the queries: the form of the language
models that were published with arXiv 2410.11842."""

MASK = RouterForm("mask", "the best heads, with gates of 1")

_SCORING = ("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh")
_WEIGHING = ("Concat", "Div", "Mul", "Slice")

RANKED = RouterForm(
    "ranked",
    "the best heads, weighed by another function of the scores",
    scoring=_SCORING,
    weighing=_WEIGHING,
)
"""A MoHRouter keeps the k best heads, and plain operators weigh them (docs/adr/0025).

    gates = factor * w / (sum of the chosen w + epsilon)    for the k largest w, else 0

The MoHRouter ranks the logits, and the weights increase with them: two heads that
both have a sigmoid of nearly 0 are told apart by them.
"""

MIXED = RouterForm(
    "mixed",
    "the best heads, and shared heads with logits of their own",
    scoring=_SCORING,
    weighing=_WEIGHING,
)
"""shared gates = factor * sigmoid(shared_logits), or made in any other way
    routed gates = those of a top_k or a ranked router

A first stage may weigh shared against routed heads, by a softmax of two logits, say. The MoHRouter
gives shared heads gates of 1, and plain operators weigh them (docs/adr/0041).
"""

SCORED = RouterForm(
    "scored",
    "the best heads by one score, weighed by another",
    ranks="logits",
    scoring=_SCORING,
    weighing=_WEIGHING,
)
"""Heads are ranked by probabilities, say, with a bias that balances how often each is chosen.

The scores may lie close together and need not be logits: their softmax would make the gaps between
them smaller than they are, so margins are taken of the scores themselves (docs/adr/0025).
"""

CUSTOM = RouterForm("custom", "a router of no form above; it stays as ordinary operators")

FORMS = (CONSTANT, SHARED, TWO_STAGE, TOP_K, QUERY_NORM, MASK, RANKED, MIXED, SCORED, CUSTOM)
"""In the order in which they are looked for; the last one fits every router."""

SCORING = frozenset(operator for form in FORMS for operator in form.scoring)
"""Operators that may make the logits of a MoHRouter, element by element."""

WEIGHING = frozenset(operator for form in FORMS for operator in form.weighing)
"""Operators that may stand between a MoHRouter's gates, their first input, and a layer's gates."""

_BY_NAME = {form.name: form for form in FORMS}


def form_named(name: str) -> RouterForm:
    """Return the form that a manifest names."""
    return _BY_NAME[name]
