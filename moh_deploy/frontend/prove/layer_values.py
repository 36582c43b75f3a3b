"""Record the ranked scores and the attention of a layer, beside its gates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.package import fingerprint
from moh_deploy.system.npz import Array


def attention_fingerprint(
    rewrite: Rewrite, values: Mapping[Node, torch.Tensor]
) -> NDArray[np.float32] | None:
    """Return the fingerprint of what the layer's attention computed, gates included.

    Args:
        values: What the nodes of the program computed.

    Returns:
        [B, S, NUMBERS]; None where the gated heads have no view [B, S, ...].
    """
    if rewrite.attention_view is None:
        return None
    return fingerprint(to_numpy(values[rewrite.attention_view].double()))


def ranked_scores(
    rewrite: Rewrite, values: Mapping[Node, torch.Tensor], counted: torch.Tensor
) -> Array | None:
    """Return what the layer's router ranked, [B, S, candidates] in float32: of the last heads.

    Args:
        values: What the nodes of the program computed.
        counted: [B, S], the tokens that are compared.

    Returns:
        None where nothing is ranked, or the heads that are open are not the best of the last ones:
        another rule takes part in the choice.
    """
    selection = rewrite.router.selection
    if selection is None or rewrite.scores is None:
        return None
    scores, gates = values[rewrite.scores].float(), values[rewrite.gates]
    candidates = scores.shape[-1]
    if not scores.numel() or scores.shape[:-1] != gates.shape[:-1] or candidates > gates.shape[-1]:
        return None
    is_open = gates[..., -candidates:] != 0
    known = are_the_best(scores[counted], is_open[counted], selection.top_k)
    return to_numpy(scores) if known else None


def are_the_best(scores: torch.Tensor, is_open: torch.Tensor, top_k: int) -> bool:
    """Tell whether every open head has a score as high as that of the last chosen one."""
    if bool(scores.isnan().any()):
        return False
    last_chosen = scores.topk(top_k, dim=-1).values[..., -1:]
    is_best = (scores >= last_chosen) | ~is_open
    # A chosen head whose gate is 0 looks closed; more open heads than are chosen have another rule.
    return bool(is_best.all()) and bool((is_open.sum(dim=-1) <= top_k).all())
