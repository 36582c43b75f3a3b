"""Read masks that are added to attention's scores as masks of valid tokens, and make them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moh_deploy.system.npz import Array, BoolArray

HIDES = -1e4
"""What is added to the score of a key that nobody is to see is no larger: exp() of it is 0 in every
dtype."""


def is_additive(dtype: str, axes: Sequence[object]) -> bool:
    """Tell whether a mask of so many axes is one that is added to scores, by its dtype."""
    return len(axes) > 2 and "float" in dtype


def valid_keys(mask: Array) -> BoolArray | str:
    """Return which keys a mask [batch, ..., keys] leaves open, bool [batch, keys].

    Returns:
        The reason where it does not tell which tokens are valid: it holds something else than 0 and
        numbers that hide, or hides different keys from different queries, as a causal one does.
    """
    wide = mask.astype(np.float64)
    is_open = wide == 0
    if not (is_open | (wide <= HIDES)).all():
        other = wide[~is_open & ~(wide <= HIDES)][0]
        return f"it holds {other:g}, and not only 0 (valid) and -inf or the lowest number (padding)"
    by_query = is_open.reshape(len(mask), math.prod(mask.shape[1:-1]), mask.shape[-1])
    if not by_query.shape[1]:
        return "it has no query"
    if (by_query != by_query[:, :1]).any():
        return (
            "it hides other keys from one query than from another: give the mask without causality"
        )
    return np.asarray(by_query[:, 0])


def mask_like(valid: BoolArray, like: Array, between: Sequence[int] | None = None) -> Array:
    """Return which tokens [batch, tokens] are valid in the form of a mask: of 0 and 1, or as one
    that is added.

    Args:
        between: Sizes of the axes between batch and keys; None for those of `like`.
    """
    if like.ndim == 2:
        return valid.astype(like.dtype)
    middle = like.shape[1:-1] if between is None else tuple(between)
    made = np.zeros((len(valid), *middle, valid.shape[-1]), like.dtype)
    # -inf where the mask has it: a row without a key is NaN then, and not with a finite number.
    wide = like.astype(np.float64)
    lowest = -np.inf if np.isneginf(wide).any() else min(float(wide.min(initial=0.0)), HIDES)
    apart = np.expand_dims(valid, tuple(range(1, like.ndim - 1)))
    return np.where(apart, made, np.asarray(lowest).astype(like.dtype))
