"""Measure how far numbers are apart from others."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package.manifest import Spread
from moh_deploy.system.npz import Array

# Fingerprints: a few numbers for each token that tell two runs of a layer's attention apart.
#
# What a layer's attention computes is too large to keep with a package: [B, S, H*D] a layer. Kept
# are eight projections of each token onto fixed random signs. Differences survive that: the mean
# square of a projected difference is that of the difference itself (Johnson and Lindenstrauss, with
# the signs of Achlioptas, "Database-friendly random projections", 2003), so that the norm of an
# error is known to some percent from a hundred numbers on, wherever in the heads it is.

NUMBERS = 8
"""Numbers of a fingerprint for each token."""


def fingerprint(attention: Array) -> NDArray[np.float32]:
    """Project what an attention computes, gates included, onto fixed directions.

    Args:
        attention: [B, S, F]: the heads of each token, head after head; any floating-point dtype.

    Returns:
        [B, S, NUMBERS]: for each direction the sum of the F numbers, each with a sign of its own,
        over sqrt(F). Computed in float64.
    """
    signs = _signs(attention.shape[-1])
    with np.errstate(invalid="ignore", over="ignore"):  # infinities make NaN
        projected: NDArray[np.float32] = (attention.astype(np.float64) @ signs).astype(np.float32)
    return projected


@lru_cache(maxsize=16)
def _signs(size: int) -> NDArray[np.float64]:
    """Return [size, NUMBERS] of +-1/sqrt(size): part of the package format, so never to change."""
    places = np.arange(size * NUMBERS, dtype=np.uint64).reshape(size, NUMBERS)
    # A generator that is spelt out here: numpy's may give other numbers in another version.
    negative = _splitmix64(places) >> np.uint64(63)
    signs: NDArray[np.float64] = np.where(negative == 1, -1.0, 1.0) / np.sqrt(max(size, 1))
    return signs


def _splitmix64(index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers of the generator SplitMix64 (Steele, Lea, Flood, 2014) at these places."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        mixed = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return numbers


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
