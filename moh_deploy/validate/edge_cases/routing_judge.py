"""Judge what a layer made of the logits that were put in front of its router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moh_deploy.graph.router_logits import PORTS, RouterLogits
from moh_deploy.ops import MOH_ROUTER, OPS, op_names
from moh_deploy.ops.cases import Case
from moh_deploy.ops.contract import find_mismatch
from moh_deploy.ops.spec import AttributeValue
from moh_deploy.package import VectorSet, beside_masks, spread
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.reference.differences import (
    abs_error,
    describe_worst,
    largest,
    structural_mismatch,
)

PortArrays = Mapping[str, Array]
"""Port of a MoHRouter to logits [B, S, N]."""


@dataclass
class GateJudge:
    """Compares gates with the float64 reference of MoHRouter.

    That goes token by token: layers of one shape have the same logits, so what is known of equal
    gates is not asked again.
    """

    _known: dict[tuple[object, ...], str | None] = field(default_factory=dict)

    def mismatch(
        self, case: str, router: RouterLogits, logits: PortArrays, gates: Array
    ) -> str | None:
        """Describe a fault in gates [B, S, H] of finite logits; None if there is none."""
        shapes = tuple((port, array.shape, array.dtype.name) for port, array in logits.items())
        attributes = tuple(sorted(router.attributes.items()))
        content = (gates.shape, gates.dtype.name, np.ascontiguousarray(gates).tobytes())
        # The case names the logits, which are the same for every layer of one shape.
        key = (case, shapes, attributes, content)
        if key not in self._known:
            self._known[key] = find_mismatch(_case(case, router, logits), [gates])
        return self._known[key]

    def mismatch_with_nan(
        self, case: str, router: RouterLogits, logits: PortArrays, gates: Array
    ) -> str | None:
        """Describe a fault where tokens have NaN among their routed (or else their shared) logits.

        Which heads such a token chooses is not defined, but how many, and that no number comes of
        it: see docs/ops.md.
        """
        hit = tokens_with_nan(logits)
        # Tokens without NaN are judged as ever: NaN must not leak into them.
        clean = {port: array[~hit][None] for port, array in logits.items()}  # [1, tokens, N]
        problem = self.mismatch(case, router, clean, gates[~hit][None])
        return problem or _hidden_nan(router, logits, gates, hit)


def tokens_with_nan(logits: PortArrays) -> BoolArray:
    """Return [B, S]: which tokens have NaN among their logits."""
    hit = [np.isnan(array.astype(np.float64)).any(axis=-1) for array in logits.values()]
    either: BoolArray = np.logical_or.reduce(hit)
    return either


def router_reference(router: RouterLogits, logits: PortArrays) -> NDArray[np.float64]:
    """Return the gates [B, S, H] that a router has to make, in float64."""
    # float64, by the op's definition: neither kernel nor function body has a part in it.
    case = _case("", router, logits)
    (gates,) = OPS[op_names.ROUTER].reference(case.inputs(), case.attributes)
    return gates


def values_mismatch(
    what: str,
    got: Array | None,
    reference: Array,
    tolerance: Tolerance,
    counted: BoolArray | None = None,
) -> str | None:
    """Compare two arrays, NaN equal to NaN in the same place; None if they agree.

    Args:
        counted: Which elements are compared; None for all.
    """
    mismatch = structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return mismatch
    if counted is not None:
        got = np.where(counted, got, reference)
    nan_got, nan_reference = nan_places(got), nan_places(reference)
    # NaN that moved, vanished or appeared is an error of its own, whatever the numbers are.
    moved = nan_got != nan_reference
    if moved.any():
        at = [int(i) for i in np.argwhere(moved)[0]]
        here, there = ("NaN", "a number") if nan_got[tuple(at)] else ("a number", "NaN")
        return (
            f"{what} is {here} at {at} where the function bodies give {there}"
            f" ({int(moved.sum())} of {got.size} elements)."
        )
    error = np.where(nan_reference, 0.0, abs_error(got, reference))
    error, known = beside_masks(error, reference)
    limit = tolerance.limit(spread(known).largest)
    if largest(error) <= limit:
        return None
    return describe_worst(what, got, reference, error, limit)


def nan_places(array: Array) -> BoolArray:
    """Return where an array of any dtype is NaN."""
    if array.dtype.kind not in "fV":  # V: bfloat16
        return np.zeros(array.shape, bool)
    return np.isnan(array.astype(np.float64))


def _case(name: str, router: RouterLogits, logits: PortArrays) -> Case:
    arrays = tuple(logits.get(port) for port in PORTS)
    # Without what every node carries beside the op's attributes.
    known = [
        attribute.name for attribute in MOH_ROUTER.attributes if attribute.name in router.attributes
    ]
    attributes: dict[str, AttributeValue] = {name: router.attributes[name] for name in known}
    dtype = next(iter(logits.values())).dtype.name
    return Case(name, op_names.ROUTER, "", attributes, lambda _: arrays, dtype)


def _hidden_nan(
    router: RouterLogits, logits: PortArrays, gates: Array, hit: BoolArray
) -> str | None:
    shared = int(router.attributes["num_shared_heads"])
    wide = gates[hit].astype(np.float64)  # [tokens, H]
    if "routed_logits" not in logits:
        all_nan = np.asarray(np.isnan(wide).all(axis=-1))
        return _unless(all_nan, "has gates that are numbers", hit)
    routed, top_k = wide[:, shared:], int(router.attributes["top_k"])
    # How many heads are on does not depend on the scores, NaN or not.
    chosen = (routed != 0).sum(axis=-1)  # NaN counts as chosen
    if router.attributes["gate_mode"] == "mask":
        return _unless(np.equal(chosen, top_k), f"has not {top_k} open gates", hit)
    # An implementation may take them all for NaN.
    is_nan = (np.isnan(routed) | (routed == 0)).all(axis=-1)
    # No number may come of NaN: gates are normalised over the chosen heads.
    wrong = f"has not {top_k} gates that are NaN, or gates that are numbers"
    return _unless(is_nan & (chosen >= top_k), wrong, hit)


def _unless(right: BoolArray, what: str, hit: BoolArray) -> str | None:
    if right.all():
        return None
    token = np.argwhere(hit)[np.flatnonzero(~right)[0]].tolist()
    return f"token {token}, with NaN among its logits, {what} ({int((~right).sum())} tokens)."


_CAUSE = "inputs and logits are finite, and the function bodies give NaN, too"


def nan_attention_problem(what: str, made: Array, counted: BoolArray) -> str | None:
    """Describe NaN in attention that agrees, where no token got anything; None if there is none.

    Some tokens may be NaN, as a query without keys is in many a model, and closed heads are 0. But
    where there is NaN and no other number, no token got anything.
    """
    # [B, S, C], or [B, H, S, D].
    nan = nan_places(made)
    if not nan[counted].any() or (made[~nan & counted] != 0).any():
        return None
    return (
        f"{what} is NaN wherever it is not 0: {_CAUSE}. It comes of this layer, or of weights or"
        " nodes before it."
    )


def nan_output_problem(
    case: str,
    outputs: Mapping[str, Array],
    recorded: VectorSet,
    counted: Callable[[str, tuple[int, ...]], BoolArray],
) -> str | None:
    """Describe NaN in outputs that agree and should have none; None if there is none.

    NaN is right where the recorded run has NaN, unless there is nothing but NaN.

    Args:
        case: The case, for the sentence.
        outputs: What the model made of the inputs of the recorded run, and of finite logits.
        recorded: That run.
        counted: Tells which elements of an output of some shape are looked at.
    """
    if any(nan_places(array).any() for array in recorded.inputs.values()):
        return None
    looked_at = {name: counted(name, array.shape) for name, array in outputs.items()}
    found = {name: nan_places(array) & looked_at[name] for name, array in outputs.items()}
    # A recorded run that is NaN throughout excuses nothing: it is the fault to be found.
    only_nan = all((found[name] | ~looked_at[name]).all() for name in found)
    for name, places in found.items():
        known = nan_places(recorded.outputs[name])
        # At another shape nothing is known of the places, and none is excused.
        excused = not only_nan and known.shape == places.shape
        wrong = places & ~known if excused else places
        if wrong.any():
            at = [int(i) for i in np.argwhere(wrong)[0]]
            return (
                f"output '{name}' in case '{case}' is NaN at {at}: {_CAUSE}"
                f" ({int(wrong.sum())} of {wrong.size} elements)."
            )
    return None
