"""Edit one layer: its attention on the kept heads alone, or with the gates of the others at 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.forced_gates import GATES_INPUT
from moh_deploy.graph.narrowing.narrowing import (
    Entries,
    InputReachedError,
    Narrowing,
    NotNarrowedError,
    axis_size,
    constant,
    dims_of,
    packed,
    resized,
    source_axis,
    with_size,
)
from moh_deploy.graph.narrowing.rules import linear
from moh_deploy.graph.plain_products import is_projection_node, make_plain
from moh_deploy.ops import op_names
from moh_deploy.ops.op_names import KERNEL_DOMAIN
from moh_deploy.package import LayerInfo

# Let the projection behind some heads read these alone: cut its rows, however heads come there.


def narrow_projection(
    narrowing: Narrowing, heads: ir.Value, narrow: ir.Value, axis: int, kept: Entries
) -> None:
    """Replace the product that reads a value by one that reads some entries of it.

    Args:
        heads: All heads, [B, S, H*D] or [B, H, S, D].
        narrow: The kept ones, in the same form; made by the caller.
        axis: The axis that has heads.
        kept: Entries of `heads` along it.

    Raises:
        NotNarrowedError: Something else reads it. Nothing has been replaced then.
    """
    uses = heads.uses()
    if len(uses) != 1 or heads.is_graph_output():
        raise NotNarrowedError(f"its heads, '{heads.name}', are read by more than a projection")
    (use,) = uses
    node, op = use.node, use.node.op_type
    if use.idx == 0 and op in _MOVING:
        after = node.outputs[0]
        along, entries = _behind(node, heads, axis, kept)
        inputs = [narrow, *node.inputs[1:]]
        if op == "Reshape":
            shape = node.inputs[1]
            assert shape is not None
            inputs[1] = resized(narrowing, shape, along, len(entries))
        view = narrowing.again(after, along, entries, inputs)
        narrow_projection(narrowing, after, view, along, entries)
        return
    summed = 1 if op == "Conv" else len(dims_of(heads)) - 1
    if use.idx != 0 or op not in _PRODUCTS or axis != summed:
        raise NotNarrowedError(f"its heads, '{heads.name}', are read by {op}, not by a projection")
    groups = node.attributes.get("group")
    if groups is not None and groups.as_int() > 1:
        raise NotNarrowedError(
            f"its heads, '{heads.name}', are read by a convolution of {groups.as_int()} groups, not"
            " by a projection"
        )
    _replace(narrowing, node, narrow, kept)


def _replace(narrowing: Narrowing, node: ir.Node, narrow: ir.Value, kept: Entries) -> None:
    """Y = X W + bias: rows of W, which a convolution has on axis 1 of its weight [O, I, ...]."""
    weight, result = node.inputs[1], node.outputs[0]
    assert weight is not None
    transposed = node.op_type == "Gemm" and "transB" in node.attributes
    is_column = transposed and node.attributes["transB"].as_int() == 1
    rows = 1 if is_column or node.op_type == "Conv" else len(dims_of(weight)) - 2
    weight = narrowing.narrowed(weight, rows, kept)
    if node.op_type == op_names.OUTPUT_PROJECTION:
        bias = node.inputs[3] if len(node.inputs) > 3 else None
        made = linear(narrowing, node, narrow, weight, bias, result.shape)
    else:
        inputs = [narrow, weight, *node.inputs[2:]]
        again = narrowing.node(
            node, node.op_type, inputs, node.attributes.values(), like=node.outputs
        )
        made = again.outputs[0]
        made.shape = result.shape
    result.replace_all_uses_with(made, replace_graph_outputs=True)
    # Readers and outputs of the model know the name.
    made.name, result.name = result.name, made.name


def _behind(node: ir.Node, heads: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    """Return the axis, and the entries along it, that have some heads behind a view of them."""
    after = node.outputs[0]
    if node.op_type == "Transpose":
        rank = len(dims_of(heads))
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return list(order or reversed(range(rank))).index(axis), kept
    if node.op_type == "Reshape":
        # The elements are the same on both sides, so either may be asked for those of the other.
        return source_axis(after, heads, axis, kept)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        # Axes of size 1 come or go; the others keep their order.
        longer = max(dims_of(heads), dims_of(after), key=len)
        stored = constant(node.inputs[1])
        if stored is None:
            raise NotNarrowedError(f"'{after.name}' has axes that are chosen at run time")
        moved = {int(number) % len(longer) for number in stored}
        left = [number for number in range(len(longer)) if number not in moved]
        return (left.index(axis) if node.op_type == "Squeeze" else left[axis]), kept
    return axis, kept


_MOVING = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_PRODUCTS = ("MatMul", "Gemm", "Conv", op_names.OUTPUT_PROJECTION)


# Keys and values of the query heads that stay, where several of these share one.
#
# query heads 0 1 2 3 | 4 5 6 7 read key heads 0 | 1. Kept: 0 1 2 3 | 5 6
#
# The groups are left with 4 and 2 query heads, and the operator knows groups of one size: of 2,
# with key head 0 twice. It is repeated behind its projection, which makes it once.


@dataclass
class KeyHeads:
    """The key/value heads of one layer."""

    narrowing: Narrowing
    ends: Collection[ir.Value]  # what the layer makes, and its gates
    heads: int  # how many there are
    used: Mapping[int, int]  # number of each that stays to how many query heads read it
    notes: list[str] = field(default_factory=list)  # what a user should know, in sentences

    def __post_init__(self) -> None:
        group = math.gcd(*self.used.values())
        self._times = {head: self.used[head] // group for head in sorted(self.used)}
        if self.num_heads > len(self._times):
            self.notes.append(
                f"its {len(self._times)} key/value heads are repeated to {self.num_heads}: the"
                " groups that are left are not of one size"
            )

    @property
    def num_heads(self) -> int:
        """The number of heads that the attention reads."""
        return sum(self._times.values())

    def of(self, value: ir.Value | None) -> ir.Value:
        """Return the keys, or the values, that the attention is to read."""
        assert value is not None
        kept = tuple(self._times)
        if len(kept) < self.heads:
            # All heads are computed in any case where they are those of a cache.
            try:
                narrow = self.narrowing.narrowed(value, *packed(value, self.heads, kept))
                if not self.narrowing.is_read_elsewhere(value, self.ends):
                    return self._picked(narrow, list(self._times.values()))
                why = "something else reads all heads"
            except InputReachedError as error:
                why = str(error)
            self.notes.append(f"'{value.name}' stays whole, and kept heads are copied: {why}")
        return self._picked(value, [self._times.get(head, 0) for head in range(self.heads)])

    def _picked(self, value: ir.Value, times: list[int]) -> ir.Value:
        """Take each head so many times: Split into heads, Concat of some of them."""
        if all(count == 1 for count in times):
            return value
        axis = 1 if len(dims_of(value)) == 4 else 2
        size = axis_size(value, axis) // len(times)
        place = value.producer()
        if place is None:
            raise NotNarrowedError(f"'{value.name}' is an input of the model")
        along = [ir.AttrInt64("axis", axis)]
        how = [*along, ir.AttrInt64("num_outputs", len(times))]
        split = self.narrowing.node(place, "Split", [value], how, like=[value] * len(times))
        parts: list[ir.Value] = []
        for part, count in zip(split.outputs, times, strict=True):
            part.shape = with_size(value, axis, size)
            parts += [part] * count
        joined = self.narrowing.node(split, "Concat", parts, along, like=[value]).outputs[0]
        joined.shape = with_size(value, axis, size * len(parts))
        return joined


@dataclass(frozen=True)
class FixedHeads:
    """The heads of one layer that run, for every token alike."""

    kept: tuple[int, ...]  # their numbers, ascending
    gates: tuple[float, ...]  # what each of them is multiplied with
    is_cut: bool = True  # the other heads are gone; else they stay, with gates of 0


@dataclass
class LayerEdit:
    """The edit of one layer."""

    narrowing: Narrowing
    layer: LayerInfo
    heads: FixedHeads
    node: ir.Node  # its attention
    projections: dict[str | None, ir.Node]  # its projections that are operators, by name
    routed: ir.Value  # the gates that the attention read
    recorded: ir.Value  # the gates by the name that the manifest has
    notes: list[str] = field(default_factory=list)  # what was done to keys and values, in sentences

    @classmethod
    def of(
        cls,
        narrowing: Narrowing,
        nodes: dict[str, ir.Node],
        layer: LayerInfo,
        heads: FixedHeads,
    ) -> LayerEdit:
        """Find the nodes of a layer.

        Raises:
            NotNarrowedError: Its attention is of plain operators, or has gates of its own.
        """
        if layer.node is None:
            raise NotNarrowedError(f"its attention is of plain operators ({layer.reason})")
        node = nodes[layer.node]
        routed = node.inputs[GATES_INPUT[node.op_type]]
        assert routed is not None
        values = {value.name: value for node in nodes.values() for value in node.outputs}
        recorded = values.get(layer.gates, routed)
        if _root(recorded) is not _root(routed):
            raise NotNarrowedError("its attention weighs the recorded gates once more")
        named = (layer.query_projection, layer.output_projection)
        projections: dict[str | None, ir.Node] = {
            name: nodes[name] for name in named if name is not None
        }
        return cls(narrowing, layer, heads, node, projections, routed, recorded)

    def close(self) -> LayerInfo:
        """Fix the gates of all heads, 0 for those that are not kept."""
        numbers = dict(zip(self.heads.kept, self.heads.gates, strict=True))
        # How many tokens there are tells what no gate is needed for: not projected queries.
        projection = self.projections.get(self.layer.query_projection)
        source = (projection or self.node).inputs[0]
        assert source is not None
        gates = self._gates(source, [numbers.get(h, 0.0) for h in range(self.layer.num_heads)])
        for node in (self.node, *self.projections.values()):
            node.replace_input_with(GATES_INPUT[node.op_type], gates)
        return self._layer(
            gates, closed=[h for h in range(self.layer.num_heads) if h not in numbers]
        )

    def cut(self) -> LayerInfo:
        """Compute the kept heads alone.

        Raises:
            NotNarrowedError: What computes the others cannot be cut. Nothing has changed then.
        """
        node = self.node
        is_attention = node.op_type == op_names.ATTENTION
        inputs, attributes = self._attention() if is_attention else self._aggregated()
        query = inputs[0]
        assert query is not None
        axis, entries = packed(node.outputs[0], self.layer.num_heads, self.heads.kept)
        made = ir.Node(
            KERNEL_DOMAIN,
            node.op_type,
            inputs,
            [*{**node.attributes, **attributes}.values()],
            name=node.name,
        )
        output, result = made.outputs[0], node.outputs[0]
        output.type, output.name = result.type, f"{result.name}.kept"
        shape = list(dims_of(result))
        shape[axis] = len(entries)
        output.shape = ir.Shape(shape)
        narrow_projection(self.narrowing, result, output, axis, entries)
        # From here on nothing is refused.
        gates = self._gates(query, self.heads.gates)
        made.replace_input_with(GATES_INPUT[node.op_type], gates)
        self.narrowing.graph.insert_after(node, made)
        # Where all heads stay, so do their projections: with nothing to skip.
        for use in list(self.routed.uses()):
            if is_projection_node(use.node):
                make_plain(use.node)
        node.name = f"{node.name}.before"
        result.name, output.name = f"{result.name}.before", result.name
        layer = self._layer(gates, closed=[])
        kv_heads = attributes["kv_num_heads"].as_int() if is_attention else len(self.heads.kept)
        return replace(
            layer,
            num_heads=len(self.heads.kept),
            num_kv_heads=None if layer.num_kv_heads is None else kv_heads,
            query_projection=None,
            output_projection=None,
        )

    def _layer(self, gates: ir.Value, closed: Sequence[int]) -> LayerInfo:
        # Layers that shared a router have fixed gates of their own.
        name = self.layer.gates
        if self.recorded.name == name:
            self.recorded.name = f"{name}.routed"
        else:
            name = gates.name or name
        gates.name = name
        # After a cut, the kept heads are numbered anew.
        numbers = range(len(self.heads.kept)) if self.heads.is_cut else self.heads.kept
        zero = [head for head, gate in zip(numbers, self.heads.gates, strict=True) if gate == 0]
        num_open = len(self.heads.kept) - len(zero)
        return replace(
            self.layer,
            gates=name,
            router="constant",
            router_replaced=False,
            reason=None,
            num_shared_heads=None,
            top_k=None,
            active_share=num_open / (len(self.heads.kept) + len(closed)),
            closed_heads=tuple(sorted([*closed, *zero])),
            choice=None,
            ranges=(),
        )

    def _attention(self) -> tuple[list[ir.Value | None], dict[str, ir.Attr]]:
        """Return inputs and attributes of a MoHAttention of the kept heads."""
        query, key, value, gates, *rest = self.node.inputs
        q_heads = self.node.attributes["q_num_heads"].as_int()
        kv_heads = self.node.attributes["kv_num_heads"].as_int()
        kept, group = self.heads.kept, q_heads // kv_heads
        used = Counter(head // group for head in kept)
        keys = KeyHeads(self.narrowing, self._ends, kv_heads, used)
        inputs = [self._query(query, q_heads), keys.of(key), keys.of(value), gates]
        self.notes = keys.notes
        if rest and rest[0] is not None:
            # A mask that tells heads apart is [B, H, S, T] or [H, S, T].
            mask, axis = rest[0], len(dims_of(rest[0])) - 3
            if axis >= 0 and dims_of(mask)[axis] != 1:
                if dims_of(mask)[axis] != q_heads:
                    message = f"it is not known whether '{mask.name}' tells heads apart"
                    raise NotNarrowedError(message)
                rest[0] = self.narrowing.narrowed(mask, axis, kept)
        inputs += rest
        counts = {"q_num_heads": len(kept), "kv_num_heads": keys.num_heads}
        return inputs, {name: ir.AttrInt64(name, number) for name, number in counts.items()}

    @property
    def _ends(self) -> frozenset[ir.Value]:
        """What the layer makes, and the gates of its router: both are made in another way now."""
        return frozenset((self.node.outputs[0], _root(self.routed)))

    def _aggregated(self) -> tuple[list[ir.Value | None], dict[str, ir.Attr]]:
        """Return inputs and attributes of a MoHAggregatedAttention of the kept heads."""
        heads, kept = self.node.attributes["num_heads"].as_int(), self.heads.kept
        *rows, gates = self.node.inputs[:6]
        query, *others = rows
        inputs: list[ir.Value | None] = [self._query(query, heads)]
        inputs += [self._narrowed(other, heads, kept) for other in others]
        # What is of heads alone has them in front: [H, ...].
        constants = [
            None if value is None else self.narrowing.narrowed(value, 0, kept)
            for value in self.node.inputs[6:]
        ]
        return [*inputs, gates, *constants], {"num_heads": ir.AttrInt64("num_heads", len(kept))}

    def _query(self, query: ir.Value | None, heads: int) -> ir.Value:
        narrow = self._narrowed(query, heads, self.heads.kept)
        assert query is not None
        # Queries that something else needs would be computed twice.
        if narrow is not query and self.narrowing.is_read_elsewhere(query, self._ends):
            raise NotNarrowedError("its queries are read by something besides it")
        return narrow

    def _narrowed(self, value: ir.Value | None, heads: int, kept: Entries) -> ir.Value:
        assert value is not None
        axis, entries = packed(value, heads, kept)
        return self.narrowing.narrowed(value, axis, entries)

    def _gates(self, query: ir.Value, gates: Sequence[float]) -> ir.Value:
        """Add gates [B, S, H] that are the same for every token."""
        place, rank, heads = query.producer(), len(dims_of(query)), len(gates)
        node = self.narrowing.node
        number = self.narrowing.weight(f"{self.layer.gates}.fixed", np.array([[gates]], np.float32))
        axes = (0, 1) if rank == 3 else (0, 2)
        sizes: list[ir.Value | None] = []
        for axis in axes:
            ends = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
            place = node(place, "Shape", [query], ends, like=[number])
            sizes.append(_typed(place.outputs[0], ir.DataType.INT64, [1]))
        sizes.append(self.narrowing.weight(f"{self.layer.gates}.heads", np.array([heads])))
        place = node(place, "Concat", sizes, [ir.AttrInt64("axis", 0)], like=[number])
        shape = _typed(place.outputs[0], ir.DataType.INT64, [3])
        expanded = node(place, "Expand", [number, shape], like=[number]).outputs[0]
        dims = dims_of(query)
        return _typed(expanded, ir.DataType.FLOAT, [dims[axes[0]], dims[axes[1]], heads])


def _typed(value: ir.Value, dtype: ir.DataType, dims: Sequence[int | str | None]) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
    return value


_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def _root(value: ir.Value) -> ir.Value:
    """Return what a value is a view of: in all views each head has the same gates."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
