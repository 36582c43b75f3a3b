"""Where skipping heads was measured to break even, layer by layer: by the times of `tune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.decision.size_break_even import SizeBreakEven, along_lines
from moh_deploy.package import Manifest

STANDARD_OPERATORS = "standard operators, every head open"


def tuned_break_even(manifest: Manifest) -> tuple[SizeBreakEven, ...]:
    """Return where each layer breaks even, and the whole model as it was chosen to run.

    Empty where the package was not tuned at two sizes of a dimension. Times are medians that have
    no intervals.
    """
    tuning = manifest.tuning
    if tuning is None or not tuning.layer_ms:
        return ()
    found: list[SizeBreakEven] = []
    named = zip((layer.path for layer in manifest.layers), tuning.layer_ms, strict=True)
    for name, times in (*named, ("all layers", tuning.model_ms)):
        gains = [_gain(time) for time in times]
        measured = [gain for gain in gains if gain is not None]
        if measured and len(measured) == len(tuning.sizes):
            found += _along(name, tuning.sizes, measured)
    return tuple(found)


def _along(
    name: str, sizes: tuple[dict[str, int], ...], gains: list[float]
) -> Iterator[SizeBreakEven]:
    return along_lines(name, STANDARD_OPERATORS, sizes, [(gain, gain, gain) for gain in gains])


def _gain(ms: Mapping[str, float]) -> float | None:
    """Return what the fastest way that skips heads saves of the time without; None if unknown."""
    skipping = [ms[name] for name in ("sparse", "projected", "chosen") if name in ms]
    return 1 - min(skipping) / ms["dense"] if skipping and "dense" in ms else None
