"""Compare one layer with its reference: the heads each token chose, their gates, the scores that
were ranked, and what its attention computed.

Which heads a token takes is a discrete choice, and rounding decides it where scores are nearly
tied. What a tie excuses is narrow: as many heads as in the reference, shared heads on, and of the
others only such exchanged whose scores lie within the bound of the boundary between chosen and
unchosen ones. Everything else is a fault, whatever the margin.

A router without a ranking (sparsemax, ReLU) opens a head as its gate leaves 0. There rounding may
open or close a gate that is no farther from 0 than gates may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package import LayerRounding, Spread, beside_masks, fingerprint_spread, spread
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.compare.parity_result import JudgedBy, LayerParity, LayerPart
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.reference import differences
from moh_deploy.validate.reference.differences import ShownIndex, abs_error

EXPORT_AGAIN = (
    "the package holds no scores of its routers, as those of earlier versions: export the model"
    " again"
)


@dataclass(frozen=True)
class LayerReference:
    """The reference values of one layer."""

    path: str
    vectors: str  # Label of the vector set
    gates: Array  # [B, S, H], or of some tokens [T, H]
    margins: Array  # How clear each token's choice is, [B, S] or [T]
    # What is ranked, of the last heads, [B, S, R] or [T, R]; None if it is not known.
    scores: Array | None = None
    # The fingerprint of what its attention computes, [B, S, NUMBERS] or of some tokens; or
    # None.
    attention: Array | None = None
    # The first so many heads are on for every token; None where the router's form does not tell.
    num_shared_heads: int | None = None
    has_scores: bool = True  # The reference holds scores, if not of this layer
    place: ShownIndex = list  # From an index into these arrays to what is shown of it


@dataclass(frozen=True)
class LayerValuesFound:
    """The same values as the runtime computed them; None for those it does not return."""

    gates: Array | None
    scores: Array | None = None
    attention: Array | None = None


def compare_layer(
    expected: LayerReference,
    found: LayerValuesFound,
    tolerance: Tolerance,
    *,
    floor: LayerRounding | None = None,
    forced: bool = False,
) -> tuple[LayerParity, BoolArray | None]:
    """Compare all that is known of a layer on both sides. A head is chosen where its gate is not 0.

    Args:
        floor: How far rounding noise moves this layer; None if it is not known.
        forced: The reference gates were fed to every layer before this one.

    Returns:
        The verdict, and which tokens chose other heads, [B, S] or [T]; None if gates cannot be
        compared.
    """
    what = f"gates of layer '{expected.path}' in vectors {expected.vectors}"
    reference, got = expected.gates, found.gates
    mismatch = differences.structural_mismatch(what, got, reference)
    margins, wanted = list(expected.margins.shape), list(reference.shape[:-1])
    if mismatch is None and margins != wanted:
        mismatch = f"{what}: margins are of shape {margins}, expected {wanted}."
    if got is None or mismatch is not None:
        return incomparable_layer(expected.path, expected.vectors, mismatch), None
    score_error, score_limit, why_scores = _compare_inner(
        f"scores of the router of layer '{expected.path}' in vectors {expected.vectors}",
        (found.scores, expected.scores),
        tolerance,
        None if floor is None else floor.scores,
    )
    attention_error, attention_limit, why_attention = _compare_inner(
        f"the attention of layer '{expected.path}' in vectors {expected.vectors}",
        (found.attention, expected.attention),
        tolerance,
        None if floor is None else floor.attention,
        is_fingerprint=True,
    )
    # Ties are judged by the scores' own floor: how far rounding moves what is ranked.
    bound = tolerance.tie_bound(None if floor is None else floor.scores)
    known = None if floor is None else floor.gates
    limit = tolerance.spread_limit(spread(differences.finite(reference)), known, reference.shape)
    ranks_nothing = expected.scores is None and bool((expected.margins == np.inf).all())
    # Without a floor, or with an infinite one, the limit is too wide to excuse a head by.
    has_floor = known is not None and math.isfinite(known.largest)
    near_zero = limit if ranks_nothing and has_floor else Spread(0.0, 0.0)
    choice = _Choice.of(expected, found, bound, near_zero.largest)
    gate_error, why_gates = _compare_gates(what, expected, got, choice, limit)
    wrong: dict[LayerPart, str | None] = {
        "scores": why_scores,
        "choice": choice.fault(what, expected, got),
        "gates": why_gates,
        "attention": why_attention,
    }
    # Other heads say more than the scores that led to them.
    told: tuple[LayerPart, ...] = ("choice", "scores", "gates", "attention")
    reason = next((wrong[part] for part in told if wrong[part] is not None), None)
    undecided = choice.doubt(what, expected) if reason is None else None
    flipped = choice.explained | choice.unexplained | choice.undecided
    chosen, meant = choice.chosen, reference != 0  # [B, S, H]
    both, either = (chosen & meant).sum(axis=-1), (chosen | meant).sum(axis=-1)  # [B, S]
    # [B, S]: a token that takes no head on either side agrees.
    shares: NDArray[np.float64] = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    judged_by: JudgedBy = "choices" if choice.clear.size else "nothing"
    # Where most tokens are near-ties, equal choices say little and scores carry the verdict.
    if score_error is not None and 2 * choice.clear.sum() < choice.clear.size:
        judged_by = "scores"
    # Decisions at near-ties count as neither equal nor unequal: which way they go is chance.
    same = chosen == meant
    parity = LayerParity(
        path=expected.path,
        vectors=expected.vectors,
        decisions=int(same[choice.clear].size),
        equal_decisions=int(same[choice.clear].sum()),
        flipped_tokens=int(choice.unexplained.sum()),
        excused_tokens=int(choice.explained.sum()),
        gate_error=gate_error,
        gate_tolerance=limit.largest,
        reason=reason or undecided,
        forced=forced,
        agreement=float(same.mean()) if same.size else None,
        jaccard=float(shares.mean()) if shares.size else None,
        smallest_margin=float(expected.margins.min()) if expected.margins.size else None,
        flip_margin=float(expected.margins[flipped].max()) if flipped.any() else None,
        margin_bound=bound,
        near_zero=near_zero,
        score_error=score_error,
        score_tolerance=score_limit,
        attention_error=attention_error,
        attention_tolerance=attention_limit,
        undecided_tokens=int(choice.undecided.sum()),
        judged_by=judged_by,
        wrong=tuple(part for part, why in wrong.items() if why is not None),
    )
    return parity, flipped


def incomparable_layer(path: str, vectors: str, reason: str | None) -> LayerParity:
    """Return the entry of a layer that has no decisions to count."""
    # `choice` is wrong so that the diagnosis does not take the layer for one that agrees.
    return LayerParity(path, vectors, 0, 0, 0, 0, math.nan, 0.0, reason, wrong=("choice",))


def rounded_heads(
    got: Array, reference: Array, near_zero: float, num_shared_heads: int | None
) -> BoolArray:
    """Tell which gates [..., H] rounding took to 0, or from it: those that differ by no more than
    `near_zero`, except of shared heads.
    """
    rounded = ((got != 0) != (reference != 0)) & (abs_error(got, reference) <= near_zero)
    rounded[..., : num_shared_heads or 0] = False
    return np.asarray(rounded)


@dataclass(frozen=True)
class _Choice:
    """The verdict on each token's choice of heads, [B, S] or [T] each."""

    clear: BoolArray  # Its margin is no near-tie
    explained: BoolArray  # It took other heads, as a tie may make it
    unexplained: BoolArray  # It took other heads, and no tie explains that
    # It took other heads at a near-tie, and the scores that would tell are not known.
    undecided: BoolArray
    bound: float  # Margins and distances below it are within rounding
    # The heads, [..., H]; one whose gate rounding took to 0, or from it, as in the reference.
    chosen: BoolArray
    rounded: BoolArray  # Which heads these are

    @classmethod
    def of(
        cls, expected: LayerReference, found: LayerValuesFound, bound: float, near_zero: float
    ) -> _Choice:
        assert found.gates is not None
        chosen, wanted = found.gates != 0, expected.gates != 0  # [..., H]; NaN counts as chosen
        shared = expected.num_shared_heads or 0
        rounded = rounded_heads(found.gates, expected.gates, near_zero, shared)
        chosen = chosen ^ rounded
        flipped = np.asarray((chosen != wanted).any(axis=-1))
        near = expected.margins.astype(np.float64) < bound  # a NaN margin excuses nothing
        # A tie exchanges heads; it does not change how many there are.
        possible = near & (chosen.sum(axis=-1) == wanted.sum(axis=-1))
        possible &= (chosen == wanted)[..., :shared].all(axis=-1)
        # Whatever rounding did to its scores, the heads must be the best by them.
        if found.scores is not None and found.scores.shape[:-1] == flipped.shape:
            possible &= _are_the_best(found.scores, chosen)
        # Without the reference's scores the margin alone is known, and it does not say which heads
        # are tied: no verdict, rather than an excuse.
        if expected.scores is None:
            undecided = flipped & possible
            explained = np.zeros_like(flipped)
        else:
            undecided = np.zeros_like(flipped)
            explained = flipped & possible & _within_bound(expected.scores, chosen, wanted, bound)
        unexplained = flipped & ~explained & ~undecided
        return cls(~near, explained, unexplained, undecided, bound, chosen, rounded)

    def fault(self, what: str, expected: LayerReference, got: Array) -> str | None:
        """Return a sentence on choices that no tie explains; None without any."""
        if not self.unexplained.any():
            return None
        # The first token stands for all: one example with its heads is what a reader can follow up.
        token = tuple(int(i) for i in np.argwhere(self.unexplained)[0])
        count = f"{int(self.unexplained.sum())} of {self.unexplained.size} tokens"
        heads, wanted = (np.flatnonzero(gate[token] != 0) for gate in (got, expected.gates))
        return (
            f"{what}: {count} choose other heads, unexplained; token {expected.place(token)} chose"
            f" {heads.tolist()}, the reference {wanted.tolist()},"
            f" {self._why(expected, got, token)}."
        )

    def doubt(self, what: str, expected: LayerReference) -> str | None:
        """Return a sentence on choices that may be ties, or may not; None without any."""
        if not self.undecided.any():
            return None
        why = "the scores that its router ranks are not known"
        return (
            f"{what}: no data. {int(self.undecided.sum())} of {self.undecided.size} tokens choose"
            f" other heads near a tie, and whether the tie explains it cannot be told:"
            f" {why if expected.has_scores else EXPORT_AGAIN}."
        )

    def _why(self, expected: LayerReference, got: Array, token: tuple[int, ...]) -> str:
        margin = float(expected.margins[token])
        heads, wanted = got[token] != 0, expected.gates[token] != 0
        # Infinite margins stand for scores that are not known, see `VectorSet.margins`.
        if math.isinf(margin):
            return "with a margin that is not known, so that it may be a tie"
        text = f"with margin {margin:.3g} (rounding explains flips below {self.bound:.3g})"
        if not margin < self.bound:
            return text
        if heads.sum() != wanted.sum():
            return f"{text}, but no tie changes how many heads a token takes"
        if (heads != wanted)[: expected.num_shared_heads or 0].any():
            return f"{text}, but shared heads are no matter of choice"
        return (
            f"{text}, but the scores of these heads are farther from the boundary than that, or"
            " they are not those that it ranks highest itself"
        )


def _are_the_best(scores: Array, chosen: BoolArray) -> BoolArray:
    """Tell for each token whether the heads that it chose are the best by its own scores.

    Routers rank in float32, whatever the model computes in: a tie moves scores, and not the rule.
    """
    wide, taken = scores.astype(np.float64), chosen[..., -scores.shape[-1] :]
    last = np.where(taken, wide, np.inf).min(axis=-1)
    first = np.where(taken, -np.inf, wide).max(axis=-1)
    # The scores were computed here from the router's logits: its own may be some float32 steps off.
    _, known = beside_masks(np.zeros(scores.shape), scores)
    rounding = 8 * np.finfo(np.float32).eps * np.abs(known).max(axis=-1)
    return np.asarray(~(first - last > rounding))  # NaN is judged elsewhere


def _within_bound(scores: Array, chosen: BoolArray, wanted: BoolArray, bound: float) -> BoolArray:
    """Tell for each token whether all exchanged heads are within the bound of the boundary."""
    candidates = scores.shape[-1]
    wide = scores.astype(np.float64)
    kept, taken = wanted[..., -candidates:], chosen[..., -candidates:]
    # The boundary lies between the last chosen and the first unchosen score of the reference.
    last = np.where(kept, wide, np.inf).min(axis=-1, keepdims=True)
    first = np.where(kept, -np.inf, wide).max(axis=-1, keepdims=True)
    # Dropped heads may be less than the bound above the best unchosen score, added ones less than
    # that below the last chosen score; a NaN is outside.
    dropped = kept & ~taken & ~(wide - first < bound)
    added = taken & ~kept & ~(last - wide < bound)
    # Heads in front of the candidates are not ranked, so no tie exchanges them.
    outside = (chosen != wanted)[..., :-candidates].any(axis=-1)
    return np.asarray(~(dropped | added).any(axis=-1) & ~outside)


def _compare_gates(
    what: str,
    expected: LayerReference,
    got: Array,
    choice: _Choice,
    limit: Spread,
) -> tuple[float, str | None]:
    """Compare the gates of heads that both chose, where the token chose no others by a tie, and
    those that rounding took to 0, or from it.

    Returns:
        The error, and why they are not equal.
    """
    reference = expected.gates
    comparable = (got != 0) & (reference != 0) & ~choice.explained[..., None] | choice.rounded
    error = np.where(comparable, abs_error(got, reference), 0.0)
    # A gate that is not finite fails even where the mask leaves it out: at heads that the reference
    # has closed, and at explained flips.
    if (np.isfinite(reference) & ~np.isfinite(got)).any():
        error = np.where(np.isfinite(got), error, np.nan)
    # With NaN anywhere all elements are measured: the mask may leave the NaN out.
    measured = spread(error[comparable] if not np.isnan(error).any() else error)
    reason = differences.beyond(
        what, (got, reference), error, (measured, limit), expected.place, "differ"
    )
    return measured.largest, reason


def _compare_inner(
    what: str,
    values: tuple[Array | None, Array | None],
    tolerance: Tolerance,
    floor: Spread | None,
    *,
    is_fingerprint: bool = False,
) -> tuple[float | None, float | None, str | None]:
    """Compare what a router ranked, or fingerprints of attention, with those of the reference.

    Args:
        values: As the runtime computed them, and the reference.
        floor: How far rounding moves them.

    Returns:
        The error, the largest that counts as equal, and why they are not equal; None where they are
        not known on both sides.
    """
    got, reference = values
    if reference is None or got is None or got.shape != reference.shape or not got.size:
        return None, None, None
    # NaN of the reference is judged where it shows, in gates and outputs.
    moved = np.where(np.isnan(reference), 0.0, abs_error(got, reference))
    if is_fingerprint:
        # They come as shares of the reference, so the size that they are held against is 1.
        error, size = fingerprint_spread(moved, differences.finite(reference)), Spread(1.0, 1.0)
    else:
        # Routers that rank scores themselves may have masked some.
        moved, known = beside_masks(moved, reference)
        error, size = spread(moved), spread(known)
    limit = tolerance.spread_limit(size, floor, got.shape, is_inner=True)
    if error.rms <= limit.rms and error.largest <= limit.largest:  # not `>`: a NaN must fail
        return error.rms, limit.rms, None
    of_whole = not error.rms <= limit.rms
    off, most = (error.rms, limit.rms) if of_whole else (error.largest, limit.largest)
    measure = "by root mean square" if of_whole else "at one token"
    noise = ""
    if floor is not None:
        noise = f"; rounding moves it by {floor.rms if of_whole else floor.largest:.3g}"
    reason = f"{what} differs by {off:.3g} {measure}, tolerance {most:.3g}{noise}."
    return error.rms, limit.rms, reason
