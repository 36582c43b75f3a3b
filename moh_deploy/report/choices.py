"""How reports show what was chosen for layers, and what was measured for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.package import CHOICES, LayerInfo, Tuning, current_choice


def measured_ms(tuning: Tuning, index: int) -> dict[str, float]:
    """Return choice to milliseconds of a layer, all inputs together as they count; may be empty."""
    sets = tuning.layer_ms[index] if index < len(tuning.layer_ms) else ()
    if not sets:
        return {}
    weighted = list(zip(tuning.weights, sets, strict=True))
    return {name: sum(weight * ms[name] for weight, ms in weighted) for name in sets[0]}


def gain(layer: LayerInfo, ms: Mapping[str, float]) -> float | None:
    """Return how many times as fast as dense a layer is as chosen; None if that is not known."""
    choice = current_choice(layer)
    if choice is None or not {"dense", choice} <= ms.keys():
        return None
    return ms["dense"] / ms[choice]


def other_winners(layer: LayerInfo, tuning: Tuning, index: int) -> Iterator[str]:
    """Yield a sentence for each set of inputs at which another choice was faster than its own."""
    for sizes, ms in zip(tuning.sizes, tuning.layer_ms[index], strict=True):
        own = str(current_choice(layer))
        best = min(ms, key=lambda name: ms[name])
        if best != own and own in ms:
            yield (
                f"{layer.path}: at {at_sizes(sizes)} {best} was faster, {ms[best]:.3g} ms"
                f" against {ms[own]:.3g}"
            )


def at_sizes(sizes: Mapping[str, int]) -> str:
    """Return `batch=2, seq=256`."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the fixed sizes"


def times_text(gain: float | None) -> str | None:
    """Return `1.25x`."""
    return None if gain is None else f"{gain:.2f}x"


def ms_cells(ms: Mapping[str, float]) -> list[str | None]:
    """Return a cell for each choice."""
    return [f"{ms[choice]:.3g}" if choice in ms else None for choice in CHOICES]
