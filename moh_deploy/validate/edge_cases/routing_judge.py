"""Judge what a layer made of the logits that were put in front of its router."""

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
from moh_deploy.validate.reference import differences

_Float64 = NDArray[np.float64]
PortArrays = Mapping[str, Array]
"""Port of a MoHRouter to logits [B, S, N]."""


@dataclass
class GateJudge:
    """Compares gates with the float64 reference of MoHRouter.

    Layers of one shape have the same logits, and the reference is slow: equal gates are compared
    once.
    """

    _known: dict[tuple[object, ...], str | None] = field(default_factory=dict)

    def mismatch(
        self, case: str, router: RouterLogits, logits: PortArrays, gates: Array
    ) -> str | None:
        """Describe a fault in gates [B, S, H] of finite logits, if any."""
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
        if problem is not None:
            return problem
        right, wrong = _right_with_nan(router, logits, gates[hit].astype(np.float64))
        if right.all():
            return None
        token = np.argwhere(hit)[np.flatnonzero(~right)[0]].tolist()
        return f"token {token}, with NaN among its logits, {wrong} ({int((~right).sum())} tokens)."


def _right_with_nan(
    router: RouterLogits, logits: PortArrays, gates: _Float64
) -> tuple[BoolArray, str]:
    """Tell which tokens [tokens, H] with NaN have right gates, and what others have."""
    if "routed_logits" not in logits:
        return np.asarray(np.isnan(gates).all(axis=-1)), "has gates that are numbers"
    routed = gates[:, int(router.attributes["num_shared_heads"]) :]
    top_k = int(router.attributes["top_k"])
    # How many heads are on does not depend on the scores, NaN or not.
    chosen = (routed != 0).sum(axis=-1)  # NaN counts as chosen
    if router.attributes["gate_mode"] == "mask":
        return np.equal(chosen, top_k), f"has not {top_k} open gates"
    # No number may come of NaN: gates are normalised over the chosen heads. An implementation may
    # take them all for NaN.
    is_nan = (np.isnan(routed) | (routed == 0)).all(axis=-1)
    wrong = f"has not {top_k} gates that are NaN, or gates that are numbers"
    return is_nan & (chosen >= top_k), wrong


def tokens_with_nan(logits: PortArrays) -> BoolArray:
    """Return [B, S]: which tokens have NaN among their logits."""
    hit = [np.isnan(array.astype(np.float64)).any(axis=-1) for array in logits.values()]
    either: BoolArray = np.logical_or.reduce(hit)
    return either


def router_reference(router: RouterLogits, logits: PortArrays) -> _Float64:
    """Return the gates [B, S, H] that a router has to make, in float64."""
    # float64, by the op's definition: neither kernel nor function body has a part in it.
    case = _case("", router, logits)
    (gates,) = OPS[op_names.ROUTER].reference(case.inputs(), case.attributes)
    return gates


def _case(name: str, router: RouterLogits, logits: PortArrays) -> Case:
    arrays = tuple(logits.get(port) for port in PORTS)
    # Without what every node carries beside the op's attributes.
    names = [attribute.name for attribute in MOH_ROUTER.attributes]
    attributes: dict[str, AttributeValue] = {
        name: router.attributes[name] for name in names if name in router.attributes
    }
    dtype = next(iter(logits.values())).dtype.name
    return Case(name, op_names.ROUTER, "", attributes, lambda _: arrays, dtype)


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
    mismatch = differences.structural_mismatch(what, got, reference)
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
    error = np.where(nan_reference, 0.0, differences.abs_error(got, reference))
    error, known = beside_masks(error, reference)
    limit = tolerance.limit(spread(known).largest)
    if differences.largest(error) <= limit:
        return None
    return differences.describe_worst(what, got, reference, error, limit)


def nan_places(array: Array) -> BoolArray:
    """Return where an array of any dtype is NaN."""
    if array.dtype.kind not in "fV":  # V: bfloat16
        return np.zeros(array.shape, bool)
    return np.isnan(array.astype(np.float64))


NAN_CAUSE = "inputs and logits are finite, and the function bodies give NaN, too"


def nan_output_problem(
    case: str,
    outputs: Mapping[str, Array],
    recorded: VectorSet,
    counted: Callable[[str, tuple[int, ...]], BoolArray],
) -> str | None:
    """Describe unexpected NaN in outputs that agree, if any.

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
                f"output '{name}' in case '{case}' is NaN at {at}: {NAN_CAUSE}"
                f" ({int(wrong.sum())} of {wrong.size} elements)."
            )
    return None


# Compute what a layer has to read as its gates, from what its MoHRouter has to make.
#
# Between the two stand views, and the operators that weigh the chosen heads (`ranked` and `scored`
# routers). They are computed here in float64, from the reference of MoHRouter on, and each number
# remembers the head that it belongs to. An operator of another kind is taken for one that changes
# nothing: if it does, the value that is read differs from the one that is computed here.

_NO_HEAD = -1
"""Head of a number that comes from no gate of the router."""

_VIEWS = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_MOVING = (*_VIEWS, "Gather", "ReduceSum", "Slice")
_ARITHMETIC = {"Add": np.add, "Div": np.divide, "Mul": np.multiply, "Sub": np.subtract}
_STEPS = 4
"""Operators that weigh gates round several times where MoHRouter rounds once."""


class _LostError(Exception):
    """Raised where a value cannot be followed from the router."""


def read_problem(read: GateRead, made: _Float64, values: Mapping[str, Array]) -> str | None:
    """Describe what is wrong with a value that a layer reads as its gates; None if nothing is.

    Args:
        read: The value, and how it is made.
        made: [B, S, H], what the layer's MoHRouter has to make.
        values: What the model computed: `read.values`.
    """
    nodes = [operator_text(node) for node in read.way.values()]
    behind = f"behind {', '.join(reversed(nodes)) or 'no operator'}"
    num_heads = made.shape[-1]
    try:
        gates, heads = _Way(read, made, values).follow(read.value)
    except _LostError as lost:
        return str(lost)
    # Head i has to stand in place i; a number of no gate, such as a constant weight, may stand
    # anywhere.
    if heads.shape[-1] != num_heads:
        return f"'{read.value}' has {heads.shape[-1]} heads, {behind}."
    moved = (heads != np.arange(num_heads)) & (heads != _NO_HEAD)
    if moved.any():
        at = tuple(int(i) for i in np.argwhere(moved)[0])
        swapped = f"has the gate of head {heads[at]} in the place of head {at[-1]}"
        return f"'{read.value}' {swapped}, {behind}."
    got = values[read.value].astype(np.float64)
    if got.shape != gates.shape:
        return f"'{read.value}' is of shape {list(got.shape)}, expected {list(gates.shape)}."
    # The coarsest dtype on the way sets the tolerance.
    names = [values[name].dtype.name for name in (read.value, *read.way)]
    rules = [OP_TOLERANCES[name] for name in names if name in OP_TOLERANCES]
    rule = max(rules, key=lambda tolerance: tolerance.absolute)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - gates)
        beyond = ~(error <= _STEPS * (rule.absolute + rule.relative * np.abs(gates)))
    # A closed head has to be closed exactly: kernels skip heads whose gate is 0.
    beyond |= (gates == 0) & (got != 0)
    beyond &= np.isfinite(gates)
    if not beyond.any():
        return None
    # NaN and infinity are shown before any finite error.
    worst = np.where(beyond, np.nan_to_num(error, nan=np.inf, posinf=np.inf), -1.0)
    at = tuple(int(i) for i in np.unravel_index(int(worst.argmax()), worst.shape))
    return (
        f"'{read.value}' at {list(at)} is {got[at]:.6g}, expected {gates[at]:.6g} of what the"
        f" router makes, {behind} ({int(beyond.sum())} of {beyond.size} elements)."
    )


_Gates = tuple[_Float64, NDArray[np.int64]]
"""Gates somewhere between a router and attention, and the head of each, of the same shape."""


@dataclass
class _Way:
    """The operators between a router and a layer."""

    read: GateRead
    made: _Float64
    values: Mapping[str, Array]

    def __post_init__(self) -> None:
        heads = np.broadcast_to(np.arange(self.made.shape[-1]), self.made.shape)
        self._known: dict[str, _Gates] = {self.read.start: (self.made, heads)}

    def follow(self, name: str) -> _Gates:
        """Compute what a value on the way from the router has to be."""
        if name not in self._known:
            if name not in self.read.way:
                raise _LostError(f"'{name}' does not come from the layer's MoHRouter.")
            self._known[name] = self._computed(name, self.read.way[name])
        return self._known[name]

    def _computed(self, name: str, node: onnx.NodeProto) -> _Gates:
        # Single constants scale all heads alike. One that differs from head to head is no weight of
        # gates: its operator is judged as one that changes nothing, and found if it does.
        constants = [self.values[name] for name in node.input if name in self.read.constants]
        if node.op_type in _ARITHMETIC and not any(map(_varies, constants)):
            return self._arithmetic(node)
        if node.op_type == "Concat":
            return self._moved(node, [self._part(name) for name in node.input])
        if node.op_type in _MOVING and self._is_on_the_way(node.input[0]):
            gates = self.follow(node.input[0])
            return gates if node.op_type == "Cast" else self._moved(node, [gates])
        # An operator that is taken for changing nothing gives its input of the same shape; of
        # several the one nearest to the router, with the fewest operators that were guessed.
        shape = self.values[name].shape
        alike = [source for source in self._sources(node) if self.values[source].shape == shape]
        if not alike:
            raise _LostError(
                f"{operator_text(node)} stands between the layer's MoHRouter and"
                f" '{self.read.value}': expected views and what weighs the chosen heads."
            )
        return self.follow(min(alike, key=self._distance))

    def _moved(self, node: onnx.NodeProto, parts: Sequence[_Gates]) -> _Gates:
        """Run an operator that changes the places of gates, on them and on their heads."""
        operator = ReferenceEvaluator(node)
        # Indices, axes and limits are read from the run, since exporters compute some of them from
        # sizes.
        beside = {name: self.values[name] for name in node.input[len(parts) :] if name}
        (gates,), (heads,) = (
            operator.run(None, {**beside, **dict(zip(node.input, arrays, strict=False))})
            for arrays in zip(*parts, strict=True)
        )
        return np.asarray(gates, np.float64), np.asarray(heads, np.int64)

    def _arithmetic(self, node: onnx.NodeProto) -> _Gates:
        (first, first_heads), (second, second_heads) = map(self._part, node.input)
        # A token without gates may divide 0 by 0; what is expected to be NaN is not judged.
        with np.errstate(all="ignore"):
            gates = _ARITHMETIC[node.op_type](first, second)
        # Numbers that gates are weighed by are of no head, and a sum of gates has the axis alone.
        is_first = self._is_on_the_way(node.input[0]) and first.shape == gates.shape
        return gates, np.broadcast_to(first_heads if is_first else second_heads, gates.shape)

    def _part(self, name: str) -> _Gates:
        if self._is_on_the_way(name):
            return self.follow(name)
        # Beside the way stands what does not depend on the router, taken as the model computed it.
        value = self.values[name].astype(np.float64)
        return value, np.full(value.shape, _NO_HEAD)

    def _sources(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in reads(node) if self._is_on_the_way(name)]

    def _distance(self, name: str) -> int:
        if name == self.read.start:
            return 0
        return 1 + min(map(self._distance, self._sources(self.read.way[name])))

    def _is_on_the_way(self, name: str) -> bool:
        return name == self.read.start or name in self.read.way


def _varies(array: Array) -> bool:
    return array.size > 1 and bool((array != array.flat[0]).any())
