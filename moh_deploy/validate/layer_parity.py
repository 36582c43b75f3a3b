"""Compare one layer's routing with its reference: the heads each token chose, and their gates."""

from __future__ import annotations

import math

import numpy as np

from moh_deploy.npz import Array, BoolArray
from moh_deploy.validate.differences import (
    Place,
    abs_error,
    describe_worst,
    largest,
    largest_finite,
    structural_mismatch,
)
from moh_deploy.validate.parity_report import LayerParity
from moh_deploy.validate.tolerances import Tolerance


def compare_layer(
    path: str,
    vectors: str,
    got: Array | None,
    reference: Array,
    margins: Array,
    tolerance: Tolerance,
    *,
    floor: float | None = None,
    forced: bool = False,
    place: Place = list,
) -> LayerParity:
    """Compare the gates of a layer. A head is chosen where its gate is not 0.

    Args:
        path: The layer.
        vectors: Label of the vector set.
        got: Gates [B, S, H], or of some tokens [T, H], from the runtime; None if it returned none.
        reference: Gates of the same form that are expected.
        margins: How clear each token's choice is, [B, S] or [T].
        tolerance: The rule for the model's precision.
        floor: The error of these gates that rounding noise makes; None if it is not known.
        forced: The reference gates were fed to every layer before this one.
        place: From an index into these arrays to what is shown of it.
    """
    what = f"gates of layer '{path}' in vectors {vectors}"
    mismatch = structural_mismatch(what, got, reference) or _margins_mismatch(
        what, reference, margins
    )
    if got is None or mismatch is not None:
        return incomparable_layer(path, vectors, mismatch)
    chosen, expected = got != 0, reference != 0  # [B, S, H]; NaN counts as chosen
    same = np.asarray(chosen == expected)
    near_tie = margins.astype(np.float64) < tolerance.near_tie
    clear = ~near_tie  # [B, S]; a NaN margin excuses nothing
    flipped = ~same.all(axis=-1)  # [B, S]
    # A token that took another head by a near-tie shares its weight among other heads.
    comparable = chosen & expected & ~(flipped & near_tie)[..., None]
    error = np.where(comparable, abs_error(got, reference), 0.0)
    gate_tolerance = tolerance.limit(largest_finite(reference), floor)
    reason = None
    if (np.isfinite(reference) & ~np.isfinite(got)).any():
        error = np.where(np.isfinite(got), error, np.nan)
    if (flipped & clear).any():
        reason = _describe_flip(what, chosen, expected, margins, flipped & clear, tolerance, place)
    elif not largest(error) <= gate_tolerance:
        reason = describe_worst(what, got, reference, error, gate_tolerance, place)
    return LayerParity(
        path=path,
        vectors=vectors,
        decisions=int(same[clear].size),
        equal_decisions=int(same[clear].sum()),
        flipped_tokens=int((flipped & clear).sum()),
        excused_tokens=int((flipped & ~clear).sum()),
        gate_error=largest(error),
        gate_tolerance=gate_tolerance,
        reason=reason,
        forced=forced,
        agreement=_share(same),
        jaccard=_jaccard(chosen, expected),
        smallest_margin=float(margins.min()) if margins.size else None,
        flip_margin=float(margins[flipped].max()) if flipped.any() else None,
        margin_bound=tolerance.near_tie,
    )


def _share(equal: BoolArray) -> float | None:
    return float(equal.mean()) if equal.size else None


def _jaccard(chosen: BoolArray, expected: BoolArray) -> float | None:
    """Return the mean over tokens of heads that both choose to heads that either does."""
    both, either = (chosen & expected).sum(axis=-1), (chosen | expected).sum(axis=-1)  # [B, S]
    shares = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    return float(shares.mean()) if shares.size else None


def incomparable_layer(path: str, vectors: str, reason: str | None) -> LayerParity:
    """Return the entry of a layer that has no decisions to count."""
    return LayerParity(path, vectors, 0, 0, 0, 0, math.nan, 0.0, reason)


def _margins_mismatch(what: str, reference: Array, margins: Array) -> str | None:
    if margins.shape == reference.shape[:-1]:
        return None
    expected = list(reference.shape[:-1])
    return f"{what}: margins are of shape {list(margins.shape)}, expected {expected}."


def _describe_flip(
    what: str,
    chosen: BoolArray,
    expected: BoolArray,
    margins: Array,
    flipped: BoolArray,
    tolerance: Tolerance,
    place: Place,
) -> str:
    token = tuple(int(i) for i in np.argwhere(flipped)[0])
    margin = (
        f"with margin {margins[token]:.3g} (rounding explains flips below {tolerance.near_tie:g})"
    )
    if np.isinf(margins[token]):
        margin = "with a margin that is not known, so that it may be a tie"
    return (
        f"{what}: {int(flipped.sum())} of {flipped.size} tokens choose other heads, unexplained;"
        f" token {place(token)} chose {np.flatnonzero(chosen[token]).tolist()}, the reference"
        f" {np.flatnonzero(expected[token]).tolist()}, {margin}."
    )
