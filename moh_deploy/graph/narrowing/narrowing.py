"""Compute only some entries along an axis of a value, by cutting the weights that make them.

    Y = Reshape(X @ W + b, [B, S, H, D])     entries h of axis 2 of Y
      = Reshape(X @ W' + b', [B, S, H', D])  W', b': the columns of these heads

The value is followed backwards to stored weights, operator by operator (`rules.py`); each is
written again beside the original, which stays for its other readers. What is unread in the
end is dropped by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.load_model import store_array
from moh_deploy.system.npz import Array

Entries = tuple[int, ...]
"""Places along one axis, ascending."""


class NotNarrowedError(Exception):
    """A value whose entries cannot be computed apart; the message says what is in the way."""


class InputReachedError(NotNarrowedError):
    """A value that is made of an input of the model, as a cache is."""


class Narrowing:
    """Writes values of one model again with fewer entries, each wish once.

    Args:
        model: The types of its values are known (`infer_types`). Nodes and weights are added.
        rules: Operator to what follows entries of its result back to its inputs.
    """

    def __init__(self, model: ir.Model, rules: Mapping[str, NarrowRule]) -> None:
        self._rules = rules
        self.graph, self.opset = model.graph, model.opset_imports[""]
        self._made: dict[tuple[ir.Value, int, Entries], ir.Value] = {}
        self._added: set[ir.Node] = set()
        nodes = list(model.graph.all_nodes())
        self._names = {node.name for node in nodes} | {v.name for n in nodes for v in n.outputs}
        self._names |= {value.name for value in model.graph.inputs} | {*model.graph.initializers}

    def narrowed(self, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
        """Return a value that holds some entries of another one.

        Args:
            value: What is to be computed in part.
            axis: Along this axis, 0 or more.
            kept: These entries.

        Raises:
            NotNarrowedError: With the reason.
        """
        if kept == tuple(range(axis_size(value, axis))):
            return value
        key = (value, axis, kept)
        if key not in self._made:
            self._made[key] = self._make(value, axis, kept)
        return self._made[key]

    def _make(self, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
        stored = constant(value)
        if stored is not None:
            return self.weight(f"{value.name}.kept", np.take(stored, kept, axis))
        node = value.producer()
        if node is None:
            raise InputReachedError(f"'{value.name}' is an input of the model")
        rule = self._rules.get(node.op_type)
        if rule is None:
            raise NotNarrowedError(
                f"'{value.name}' is made by {node.op_type}, through which heads are not followed"
            )
        return rule(self, value, axis, kept)

    def is_read_elsewhere(self, value: ir.Value, ends: Collection[ir.Value]) -> bool:
        """Tell whether the whole of a narrowed value, or of what it is made of, stays needed.

        Args:
            ends: Values that are made in another way from now on.
        """
        originals = {value for value, _, _ in self._made}
        # What was narrowed on the way to this value, back to the products with weights.
        chain, waiting = set[ir.Value](), [value]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in originals and value not in chain and node is not None:
                chain.add(value)
                waiting += [given for given in node.inputs if given is not None]
        # Forward from there to what the model returns.
        seen = set(chain)
        waiting = list(chain)
        while waiting:
            value = waiting.pop()
            if value.is_graph_output():
                return True
            readers = {use.node for use in value.uses()} - self._added
            more = {output for node in readers for output in node.outputs} - seen - {*ends}
            seen |= more
            waiting += more
        return False

    def weight(self, name: str, array: Array) -> ir.Value:
        """Store an array, and return its value."""
        return store_array(self.graph, self._unique(name), array)

    def again(
        self,
        value: ir.Value,
        axis: int,
        kept: Entries,
        inputs: Sequence[ir.Value | None],
        changed: Iterable[ir.Attr] = (),
    ) -> ir.Value:
        """Write the node that makes a value again with other inputs.

        Args:
            value: One of its outputs; all of them get fewer entries along the axis.
            changed: Attributes that are others now.
        """
        node = value.producer()
        assert node is not None
        attributes = {**node.attributes, **{attr.name: attr for attr in changed}}
        made = self.node(
            node, node.op_type, inputs, attributes.values(), like=node.outputs, axis=axis
        )
        for before, after in zip(node.outputs, made.outputs, strict=True):
            after.shape = with_size(before, axis, len(kept))
            self._made[before, axis, kept] = after
        return self._made[value, axis, kept]

    def node(
        self,
        place: ir.Node | None,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
        *,
        like: Sequence[ir.Value],
        axis: int | None = None,
    ) -> ir.Node:
        """Add a standard operator behind a node.

        Args:
            place: The node, which names what is added; None for the start of the graph.
            like: Values that the outputs are like, in type and name; without `axis` in shape, too.
        """
        made = ir.Node(
            "",
            op_type,
            inputs,
            list(attributes),
            outputs=[
                ir.Value(
                    name=self._unique(f"{value.name}.kept"),
                    type=value.type,
                    shape=value.shape if axis is None else None,
                )
                for value in like
            ],
            name=self._unique(f"{op_type if place is None else place.name}.kept"),
        )
        if place is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            self.graph.insert_after(place, made)
        self._added.add(made)
        return made

    def _unique(self, name: str) -> str:
        number, found = 2, name
        while found in self._names:
            found, number = f"{name}#{number}", number + 1
        self._names.add(found)
        return found


NarrowRule = Callable[[Narrowing, ir.Value, int, Entries], ir.Value]
"""Returns some entries of a value along an axis, by those of what its node reads."""


def constant(value: ir.Value | None) -> Array | None:
    """Return what a value holds if it is stored; None if it is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dims_of(value: ir.Value) -> tuple[int | str | None, ...]:
    """Return the sizes of a value: numbers, names, None for one that is not known.

    Raises:
        NotNarrowedError: Not even its rank is known.
    """
    if value.shape is None:
        raise NotNarrowedError(f"the shape of '{value.name}' is not known")
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def axis_size(value: ir.Value, axis: int) -> int:
    """Return the size along an axis.

    Raises:
        NotNarrowedError: It is not known.
    """
    dims = dims_of(value)
    size = dims[axis] if axis < len(dims) else None
    if not isinstance(size, int):
        raise NotNarrowedError(f"the size of axis {axis} of '{value.name}' is not known")
    return size


def with_size(value: ir.Value, axis: int, size: int) -> ir.Shape:
    """Return the shape of a value with another size along an axis."""
    dims = list(dims_of(value))
    dims[axis] = size
    return ir.Shape(dims)


def packed(value: ir.Value, heads: int, kept: Entries) -> tuple[int, Entries]:
    """Return the axis that has the heads, and the entries of some of them along it.

    Args:
        value: [B, S, H*D] or [B, H, S, D].
        heads: H.
        kept: Numbers of heads.
    """
    if len(dims_of(value)) == 4:
        return 1, kept
    size = axis_size(value, 2) // heads
    return 2, tuple(head * size + entry for head in kept for entry in range(size))


# Follow entries of a Reshape's result to an axis of what it reads, and change its shape.

_Dims = Sequence[int | str | None]


def source_axis(given: ir.Value, value: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    """Return the axis of a Reshape's input, and the entries along it, that hold what is wanted.

    Args:
        given: What it reads, such as [B, S, H*D].
        value: What it makes, such as [B, S, H, D].
        axis: Of the result.
        kept: Entries along it.

    Raises:
        NotNarrowedError: They are not all of some entries along one axis.
    """
    before, after = dims_of(given), dims_of(value)
    for own, new in _same_elements(before, after):
        if axis in new:
            found = _entries(
                [int(before[i] or 0) for i in own],
                [int(after[i] or 0) for i in new],
                axis - new[0],
                kept,
            )
            if found is not None:
                return own[found[0]], found[1]
    raise NotNarrowedError(
        f"'{value.name}' {list(after)} is reshaped from {list(before)}, in which its heads are not"
        " apart"
    )


def _same_elements(before: _Dims, after: _Dims) -> Iterator[tuple[range, range]]:
    """Yield runs of axes that hold the same elements on both sides, the last first: of [B, S, H*D]
    and [B, S, H, D] the last and the last two."""
    i, j = len(before), len(after)
    while i and j:
        stop_i, stop_j, i, j = i, j, i - 1, j - 1
        left, right = before[i], after[j]
        while left != right:
            # The smaller side takes one more axis; sizes that are not known end the search.
            if not isinstance(left, int) or not isinstance(right, int):
                return
            if left < right:
                i -= 1
                more = before[i] if i >= 0 else None
            else:
                j -= 1
                more = after[j] if j >= 0 else None
            if not isinstance(more, int):
                return
            left, right = (left * more, right) if left < right else (left, right * more)
        if isinstance(left, int):
            yield range(i, stop_i), range(j, stop_j)
        elif left is None:
            return


def _entries(
    before: Sequence[int], after: Sequence[int], axis: int, kept: Entries
) -> tuple[int, Entries] | None:
    """Return the axis of `before`, and entries along it, that are those of an axis of `after`."""
    wanted = np.zeros(after, np.bool_)
    wanted[(slice(None),) * axis + (list(kept),)] = True
    # The same elements in the same order, in the axes in front of the Reshape.
    wanted = wanted.reshape(before)
    for own in range(len(before)):
        others = tuple(i for i in range(len(before)) if i != own)
        entries = wanted.any(axis=others)  # [size of this axis]
        shape = [-1 if i == own else 1 for i in range(len(before))]
        if (wanted == entries.reshape(shape)).all():
            return own, tuple(map(int, np.flatnonzero(entries)))
    return None


def resized(narrowing: Narrowing, shape: ir.Value, axis: int, size: int) -> ir.Value:
    """Return a shape with another size along an axis.

    Args:
        shape: Stored, or put together of sizes by a Concat.

    Raises:
        NotNarrowedError: It is computed in another way.
    """
    stored = constant(shape)
    if stored is not None:
        changed = stored.copy()
        changed[axis] = size
        return narrowing.weight(f"{shape.name}.kept", changed)
    node = shape.producer()
    if node is None or node.op_type != "Concat":
        raise NotNarrowedError(f"'{shape.name}' is a shape that is computed")
    pieces, start = list(node.inputs), 0
    for number, piece in enumerate(pieces):
        assert piece is not None
        stop = start + axis_size(piece, 0)
        if (start, stop) == (axis, axis + 1):
            new_size = np.array([size], np.int64)
            pieces[number] = narrowing.weight(f"{piece.name}.kept", new_size)
        elif start <= axis < stop:
            pieces[number] = resized(narrowing, piece, axis - start, size)
        start = stop
    made = narrowing.node(node, "Concat", pieces, node.attributes.values(), like=node.outputs)
    return made.outputs[0]
