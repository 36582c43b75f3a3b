"""Measure how far numbers are apart from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package.measured import Spread
from moh_deploy.system.npz import Array

MASKS_BEYOND = 1e8
"""Beyond it a number is what a mask is made of: float16 has infinity for it, and means the same."""


def spread(difference: Array) -> Spread:
    """Return the root mean square and the largest of differences; NaN if one is, 0 for none."""
    wide = np.abs(difference.astype(np.float64))
    if not wide.size:
        return Spread(0.0, 0.0)
    return Spread(float(np.sqrt(np.mean(wide**2))), float(wide.max()))


def beside_masks(
    error: NDArray[np.float64], reference: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Keep masks, -1e9 or the like, from being the size that all else is held against.

    Args:
        error: [..., *reference.shape].
        reference: What it is the error of.

    Returns:
        The errors, those of masks as shares of the mask times the largest other value, or 1; and
        the finite values of the reference without the masks. As they are where all is as large.
    """
    wide = reference.astype(np.float64)
    known = np.where(np.isfinite(wide), wide, 0.0)
    masks = np.abs(known) > MASKS_BEYOND
    # Integers are exact at any size.
    if reference.dtype.kind in "biu" or not (np.isfinite(wide) & ~masks).any():
        return error, known
    others = np.where(masks, 0.0, known)
    size = max(1.0, spread(others).largest)
    return np.where(masks, error / np.maximum(np.abs(known), 1.0) * size, error), others


def fingerprint_spread(difference: Array, reference: Array) -> Spread:
    """Measure how far fingerprints are apart, as a share of the reference's root mean square.

    Args:
        difference: [..., NUMBERS] of tokens.
        reference: [..., NUMBERS], the fingerprints themselves.
    """
    size = spread(reference).rms
    of_tokens = np.sqrt(np.mean(difference.astype(np.float64) ** 2, axis=-1))  # [...]
    found = spread(of_tokens)
    if not size:  # nothing but zeros: every head is closed
        return found
    return Spread(found.rms / size, found.largest / size)
