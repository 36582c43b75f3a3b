"""Compute what a layer has to read as its gates, from what its MoHRouter has to make.

Between the two stand views, and the operators that weigh the chosen heads (`ranked` and `scored`
routers). They are computed here in float64, from the reference of MoHRouter on, and each gate
remembers the head that it belongs to. An operator of another kind is taken for one that changes
nothing: if it does, what is read differs from what is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.gate_reads import GateRead
from moh_deploy.ops.cases import OP_TOLERANCES
from moh_deploy.package.router_nodes import operator_text
from moh_deploy.package.switches import reads
from moh_deploy.system.npz import Array

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
