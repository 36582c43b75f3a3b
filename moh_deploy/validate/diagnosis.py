"""Where an error enters a model, read from a run to which the reference gates were fed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from moh_deploy.npz import Array
from moh_deploy.validate.parity_report import LayerParity, OutputParity


def diagnosis(layers: Sequence[LayerParity], outputs: Sequence[OutputParity]) -> str:
    """Return a sentence that names the layer.

    Args:
        layers: Every layer of one run with forced routing, in the order in which they run.
        outputs: Its outputs.
    """
    wrong = [index for index, one in enumerate(layers) if one.reason is not None]
    start = "With the reference gates fed to every layer"
    if any(one.reason is not None for one in outputs):
        return f"{start}, outputs still differ: the error first shows {_place(layers, wrong)}."
    if wrong:
        names = ", ".join(f"'{layers[index].path}'" for index in wrong)
        return f"{start}, outputs agree: the error is in the router of layer {names}."
    nearest = max(layers, key=_share)
    return (
        f"{start}, all agrees, so errors below the tolerance added up; nearest to it is the router"
        f" of layer '{nearest.path}', with {_share(nearest):.0%} of what it may differ."
    )


def reference_is_nan(values: Iterable[Array], label: str) -> str | None:
    """Return a sentence if the reference itself has NaN, which tells nothing of any layer.

    Args:
        values: What is compared of it.
    """
    if not any(np.isnan(one.astype(np.float64)).any() for one in values):
        return None
    return (
        f"On {label} the reference itself is not finite: it gives NaN, so these inputs tell nothing"
        " of the package."
    )


def _share(layer: LayerParity) -> float:
    return layer.gate_error / layer.gate_tolerance if layer.gate_tolerance else 0.0


def _place(layers: Sequence[LayerParity], wrong: Sequence[int]) -> str:
    last = len(layers) - 1
    if not wrong:
        return f"behind the router of the last layer, '{layers[last].path}'"
    first = wrong[0]
    where = f"no later than the router of layer '{layers[first].path}'"
    if first == 0:
        return where
    return f"{where}, and behind that of layer '{layers[first - 1].path}'"
