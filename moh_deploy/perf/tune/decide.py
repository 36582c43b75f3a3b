"""Choose from measurements. Where they cannot tell, the prediction does, or else plainness."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from moh_deploy.package import CHOICES, Choice
from moh_deploy.perf.cost_model.by_size import SWITCH_MS
from moh_deploy.perf.timing import TimeSamples, ratio


def contenders(samples: Mapping[str, TimeSamples]) -> tuple[Choice, ...]:
    """Return the choices that are not slower than the fastest beyond noise, the plainest first."""
    fastest = min(samples, key=lambda choice: median(samples[choice]))
    return tuple(
        choice
        for choice in CHOICES
        # The fastest is compared with itself too, is never slower, and so is always among them.
        if choice in samples and not ratio(samples[choice], samples[fastest]).is_slower
    )


def decide(samples: Mapping[str, TimeSamples], predicted_ms: Mapping[str, float]) -> Choice:
    """Return the fastest choice.

    Args:
        samples: Times of each choice that a layer has.
        predicted_ms: What is predicted for each; nothing where nothing is.

    Returns:
        Of those that are as fast as the fastest, the one that is predicted to be it; without a
        prediction of them the plainest.
    """
    # Among choices that measuring cannot tell apart, the cost model knows better than noise.
    able = contenders(samples)
    known = [choice for choice in able if choice in predicted_ms]
    return min(known, key=lambda choice: predicted_ms[choice]) if known else able[0]


def fastest_there(
    samples: Mapping[str, TimeSamples], predicted_ms: Mapping[str, float], *, otherwise: Choice
) -> Choice:
    """Return the fastest choice in one run of the model, if it beats another beyond noise, or else
    that one.

    Args:
        samples: Choice to times of a layer in that run.
        predicted_ms: Choice to what is predicted; nothing where nothing is.
        otherwise: The other choice.
    """
    best = decide(samples, predicted_ms)
    gain_ms = median(samples[otherwise]) - median(samples[best])
    # Being faster is not enough: the If that a choice by size needs takes time itself.
    clearly = ratio(samples[best], samples[otherwise]).is_faster and gain_ms > SWITCH_MS
    return best if clearly else otherwise
