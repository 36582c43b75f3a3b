"""Judge what a layer made of the logits that were put in front of its router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.layer_reads import PORTS, GateRead, RouterLogits
from moh_deploy.ops import MOH_ROUTER, OPS, op_names
from moh_deploy.ops.cases import OP_TOLERANCES, Case, find_mismatch
from moh_deploy.ops.spec import AttributeValue
from moh_deploy.package import VectorSet, beside_masks, spread
from moh_deploy.package.graph_nodes import operator_text, reads
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


# Compute what a layer has to read as its gates, from what its MoHRouter has to make.
#
# Between the two stand views, and the operators that weigh the chosen heads (`ranked` and `scored`
# routers). They are computed here in float64, from the reference of MoHRouter on, and each gate
# remembers the head that it belongs to. An operator of another kind is taken for one that changes
# nothing: if it does, what is read differs from what is computed here.

_Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]

NOBODY = -1
"""Head of a number that comes from no gate of the router."""

_VIEWS = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_MOVING = (*_VIEWS, "Gather", "ReduceSum", "Slice")
_ARITHMETIC: Mapping[str, Callable[[_Float64, _Float64], _Float64]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_STEPS = 4
"""Operators that weigh gates round several times where MoHRouter rounds once."""


@dataclass(frozen=True)
class Followed:
    """Gates somewhere between a router and attention.

    Attributes:
        gates: Their values.
        heads: Head of each, of the same shape.
    """

    gates: _Float64
    heads: Integers


def read_problem(read: GateRead, made: _Float64, values: Mapping[str, Array]) -> str | None:
    """Describe what is wrong with a value that a layer reads as its gates; None if nothing is.

    Args:
        read: The value, and how it is made.
        made: [B, S, H], what the layer's MoHRouter has to make.
        values: What the model computed: `read.values`.
    """
    try:
        expected = _Follower(read, made, values).follow(read.value)
    except _LostError as error:
        return str(error)
    # Head i has to stand in place i; a number of no gate, a constant weight say, may stand
    # anywhere.
    order = np.arange(made.shape[-1])
    moved = (expected.heads != order) & (expected.heads != NOBODY)
    if expected.heads.shape[-1] != len(order) or moved.any():
        return _moved_sentence(read, expected.heads, moved)
    return _difference(read, expected.gates, values)


@dataclass
class _Follower:
    read: GateRead
    made: _Float64
    values: Mapping[str, Array]
    known: dict[str, Followed] = field(default_factory=dict)

    def follow(self, name: str) -> Followed:
        """Compute what a value on the way from the router has to be."""
        if name == self.read.start:
            heads = np.arange(self.made.shape[-1])
            return Followed(self.made, np.broadcast_to(heads, self.made.shape))
        if name not in self.read.way:
            raise _LostError(f"'{self.read.value}' does not come from the layer's MoHRouter.")
        if name not in self.known:
            self.known[name] = self._made(name, self.read.way[name])
        return self.known[name]

    def _made(self, name: str, node: onnx.NodeProto) -> Followed:
        # A constant that differs from head to head is no weight of gates: it is judged as an
        # operator that changes nothing, and found if it does.
        if node.op_type in _ARITHMETIC and not self._tells_heads_apart(node):
            return self._arithmetic(node)
        if node.op_type == "Concat":
            return self._moved(node, [self._part(name) for name in node.input])
        if node.op_type not in _MOVING or not self._on_the_way(node.input[0]):
            return self._unchanged(name, node)
        source = self.follow(node.input[0])
        return source if node.op_type == "Cast" else self._moved(node, [source])

    def _moved(self, node: onnx.NodeProto, parts: Sequence[Followed]) -> Followed:
        """Run an operator that changes the places of gates, on them and on their heads."""
        operator = ReferenceEvaluator(node)
        # Indices, axes and limits are read from the run, since exporters compute some of them from
        # sizes.
        beside = {name: self.values[name] for name in node.input[len(parts) :] if name}
        (gates,), (heads,) = (
            operator.run(None, {**beside, **dict(zip(node.input, arrays, strict=False))})
            for arrays in ([part.gates for part in parts], [part.heads for part in parts])
        )
        return Followed(np.asarray(gates, np.float64), np.asarray(heads, np.int64))

    def _arithmetic(self, node: onnx.NodeProto) -> Followed:
        first, second = (self._part(name) for name in node.input)
        # A token without gates may divide 0 by 0; what is expected to be NaN is not judged.
        with np.errstate(all="ignore"):
            gates = _ARITHMETIC[node.op_type](first.gates, second.gates)
        # Numbers that gates are weighed by are of no head, and a sum of gates has the axis alone.
        is_first = self._on_the_way(node.input[0]) and first.gates.shape == gates.shape
        owner = first if is_first else second
        return Followed(gates, np.broadcast_to(owner.heads, gates.shape))

    def _tells_heads_apart(self, node: onnx.NodeProto) -> bool:
        """Tell whether an operator reads a constant of several values: gates are weighed by single
        ones."""
        # Single values scale all heads alike; only a constant of several can tell them apart.
        known = [self.values[name] for name in node.input if name in self.read.constants]
        return any(array.size > 1 and bool((array != array.flat[0]).any()) for array in known)

    def _unchanged(self, name: str, node: onnx.NodeProto) -> Followed:
        shape = self.values[name].shape
        read = [read for read in reads(node) if self._on_the_way(read)]
        # An operator that is taken for changing nothing gives its input of the same shape.
        alike = [name for name in read if self.values[name].shape == shape]
        if not alike:
            raise _LostError(
                f"{operator_text(node)} stands between the layer's MoHRouter and"
                f" '{self.read.value}': expected views and what weighs the chosen heads."
            )
        # Of several the one nearest to the router: it has the fewest operators that were guessed.
        return self.follow(min(alike, key=self._distance))

    def _distance(self, name: str) -> int:
        if name == self.read.start:
            return 0
        read = [read for read in reads(self.read.way[name]) if self._on_the_way(read)]
        return 1 + min(map(self._distance, read))

    def _on_the_way(self, name: str) -> bool:
        return name == self.read.start or name in self.read.way

    def _part(self, name: str) -> Followed:
        if self._on_the_way(name):
            return self.follow(name)
        # Beside the way stands what does not depend on the router, taken as the model computed it.
        value = self.values[name].astype(np.float64)
        return Followed(value, np.full(value.shape, NOBODY))


class _LostError(Exception):
    """Raised where a value cannot be followed from the router."""


def _moved_sentence(read: GateRead, heads: Integers, moved: NDArray[np.bool_]) -> str:
    if moved.shape[-1] and moved.any():
        at = tuple(int(i) for i in np.argwhere(moved)[0])
        what = f"has the gate of head {heads[at]} in the place of head {at[-1]}"
    else:
        what = f"has {heads.shape[-1]} heads"
    return f"'{read.value}' {what}, behind {_operators(read)}."


def _difference(read: GateRead, expected: _Float64, values: Mapping[str, Array]) -> str | None:
    got = values[read.value].astype(np.float64)
    if got.shape != expected.shape:
        return f"'{read.value}' is of shape {list(got.shape)}, expected {list(expected.shape)}."
    # The coarsest dtype on the way sets the tolerance.
    names = [values[name].dtype.name for name in (read.value, *read.way)]
    rule = max(
        (OP_TOLERANCES[name] for name in names if name in OP_TOLERANCES),
        key=lambda name: name.absolute,
    )
    with np.errstate(invalid="ignore"):
        error = np.abs(got - expected)
        beyond = ~(error <= _STEPS * (rule.absolute + rule.relative * np.abs(expected)))
    # A closed head has to be closed exactly: kernels skip heads whose gate is 0.
    beyond |= (expected == 0) & (got != 0)
    beyond &= np.isfinite(expected)
    if not beyond.any():
        return None
    # NaN and infinity are shown before any finite error.
    worst = np.where(beyond, np.nan_to_num(error, nan=np.inf, posinf=np.inf), -1.0)
    at = tuple(int(i) for i in np.unravel_index(int(worst.argmax()), worst.shape))
    return (
        f"'{read.value}' at {list(at)} is {got[at]:.6g}, expected {expected[at]:.6g} of what the"
        f" router makes, behind {_operators(read)} ({int(beyond.sum())} of {beyond.size} elements)."
    )


def _operators(read: GateRead) -> str:
    nodes = [operator_text(node) for node in read.way.values()]
    return ", ".join(reversed(nodes)) if nodes else "no operator"
