"""Measure how far numbers are apart from others."""

from __future__ import annotations

import numpy as np

from moh_deploy.package.measured import Spread
from moh_deploy.system.npz import Array


def spread(difference: Array) -> Spread:
    """Return the root mean square and the largest of differences; NaN if one is, 0 for none."""
    wide = np.abs(difference.astype(np.float64))
    if not wide.size:
        return Spread(0.0, 0.0)
    return Spread(float(np.sqrt(np.mean(wide**2))), float(wide.max()))


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
