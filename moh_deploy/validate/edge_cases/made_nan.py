"""Find NaN made of finite inputs and logits: wrong, although both sides have it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moh_deploy.package import VectorSet
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.edge_cases.routing_judge import nan_places

_CAUSE = "inputs and logits are finite, and the function bodies give NaN, too"


def attention_problem(what: str, made: Array) -> str | None:
    """Describe NaN in attention that agrees, where no token got anything; None if there is none.

    Some tokens may be NaN, as a query without keys is in many a model, and closed heads are 0. But
    where there is NaN and no other number, no token got anything.
    """
    # [B, S, C], or [B, H, S, D].
    nan = nan_places(made)
    if not nan.any() or (made[~nan] != 0).any():
        return None
    return (
        f"{what} is NaN wherever it is not 0: {_CAUSE}. It comes of this layer, or of weights or"
        " nodes before it."
    )


def output_problem(case: str, outputs: Mapping[str, Array], recorded: VectorSet) -> str | None:
    """Describe NaN in outputs that agree and should have none; None if there is none.

    NaN is right where the recorded run has NaN, unless there is nothing but NaN.

    Args:
        case: The case, for the sentence.
        outputs: What the model made of the inputs of the recorded run, and of finite logits.
        recorded: That run.
    """
    if any(nan_places(array).any() for array in recorded.inputs.values()):
        return None
    found = {name: nan_places(array) for name, array in outputs.items()}
    # A recorded run that is NaN throughout excuses nothing: it is the fault to be found.
    only_nan = all(places.all() for places in found.values())
    for name, places in found.items():
        wrong = places if only_nan else places & ~_recorded_nan(recorded, name, places)
        if wrong.any():
            at = [int(i) for i in np.argwhere(wrong)[0]]
            return (
                f"output '{name}' in case '{case}' is NaN at {at}: {_CAUSE}"
                f" ({int(wrong.sum())} of {wrong.size} elements)."
            )
    return None


def _recorded_nan(recorded: VectorSet, name: str, places: BoolArray) -> BoolArray:
    known = nan_places(recorded.outputs[name])
    # At another shape nothing is known of the places, and none is excused.
    return known if known.shape == places.shape else np.zeros(places.shape, bool)
