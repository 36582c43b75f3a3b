"""Choose from measurements. Whoever is not clearly faster than something plainer loses to it."""

from __future__ import annotations

from collections.abc import Mapping

from moh_deploy.package import CHOICES, Choice
from moh_deploy.tuning.timing import Samples, ratio


def fastest(samples: Mapping[str, Samples]) -> Choice:
    """Return the choice that is faster than all plainer ones, beyond noise.

    Args:
        samples: Times of each choice that a layer has; `dense` among them.
    """
    best: Choice = "dense"
    for choice in CHOICES:
        if choice in samples and ratio(samples[choice], samples[best]).is_faster:
            best = choice
    return best
