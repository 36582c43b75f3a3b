"""Tensors that begin as zeros and are filled part by part, as the concatenation of their parts.

`out[..., 8:16] = part`, `out[:, :, h] = part` or `out.index_add(-1, arange(8, 16), part)`, head by
head: torch leaves a row of `slice_scatter`, `select_scatter` or `index_add` behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.axes import size_of
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import argument, is_tensor, let_read, op, rank, shape, tensor
from moh_deploy.frontend.fx.known_values import Constants, KnownValues
from moh_deploy.frontend.fx.slices import Slice, read_slice
from moh_deploy.frontend.fx.views import REORDERS, through_views
from moh_deploy.frontend.normalize.factor import factor_out_slices

aten = torch.ops.aten

_ZEROS = frozenset(["zeros", "zeros_like", "new_zeros"])
_WRITES = frozenset(["slice_scatter", "select_scatter", "index_add"])


@dataclass(frozen=True)
class _Write:
    """Entries `start` to `stop` of a dimension that get a value."""

    base: Node  # what all other entries are of
    value: Node  # without the dimension where it is a single entry
    dim: int
    start: int
    stop: int
    keeps_dim: bool

    def stood_in(self, part: Slice | None) -> bool:
        """True for the part of the base that the write is about to replace."""
        place = (self.base, self.dim, self.start, self.stop)
        return part is not None and (part.source, part.dim, part.start, part.stop) == place


def read_assembled(program: ExportedProgram) -> None:
    """Let `cat`, `stack` and sums take over from tensors that are filled part by part."""
    graph = program.graph_module.graph
    if not any(op(node) in _WRITES for node in graph.nodes):
        return
    known = KnownValues(program)
    for node in graph.find_nodes(op="call_function", target=aten.index_add.default):
        _add_whole(GraphBuilder(graph, node), node)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):  # the last write of a row, with all before it
        if op(node) in _WRITES and node.users:
            _join(GraphBuilder(graph, node), node, known)


def _add_whole(builder: GraphBuilder, node: Node) -> None:
    """`index_add` to all entries in order is an addition; to a single one, that of a sum."""
    base, dim, index, source = cast(tuple[Node, int, Node, Node], tuple(node.args[:4]))
    if argument(node, "alpha", 1) != 1 or rank(node) == 0:
        return
    dim %= rank(node)
    if shape(base)[dim] == 1:
        source = builder.call(aten.sum.dim_IntList, source, [dim], True)
    else:
        counts = op(index) == "arange" and index.args and argument(index, "step", 1) == 1
        if not counts or argument(index, "start", 0) != 0:  # 0, 1, 2, ...
            return
        if shape(index)[0] != shape(base)[dim]:
            return
    alike = shape(source) == shape(node) and tensor(source).dtype == tensor(node).dtype
    if not (alike and _is_zero(base)):
        source = builder.call(aten.add.Tensor, base, source)
    let_read(node, source)


def _join(builder: GraphBuilder, node: Node, known: KnownValues) -> None:
    """Concatenate what was written into zeros, where that is all of them."""
    writes: list[_Write] = []
    current = node
    while (write := _write(current, known)) is not None:
        if writes and (write.dim, write.keeps_dim) != (writes[0].dim, writes[0].keeps_dim):
            return
        # Torch writes back, behind an operator in place, what it has written already.
        if not write.stood_in(read_slice(write.value)):
            writes.append(write)
        current = write.base
    if not writes or not _is_zero(current):
        return
    writes.sort(key=lambda write: write.start)
    expected = 0
    for write in writes:
        if write.start != expected:
            return
        expected = write.stop
    if shape(node)[writes[0].dim] != expected:
        return
    values = [builder.cast(write.value, tensor(node).dtype) for write in writes]
    join = aten.cat.default if writes[0].keeps_dim else aten.stack.default
    let_read(node, builder.call(join, values, writes[0].dim))


def _is_zero(node: Node) -> bool:
    return op(node) in _ZEROS or (
        op(node) in ("full", "full_like", "new_full") and argument(node, "fill_value") == 0
    )


def _write(node: Node, known: KnownValues) -> _Write | None:
    """Read a node as a write of known entries; None for other nodes."""
    name = op(node)
    if name not in _WRITES:
        return None
    base = cast(Node, node.args[0])
    dim = cast(int, argument(node, "dim", 0)) % rank(node)
    extent = shape(base)[dim]
    if not extent.is_Integer:
        return None
    if name == "index_add":
        index = known(cast(Node, node.args[2]))
        if index is None or argument(node, "alpha", 1) != 1 or not index.numel():
            return None
        start = int(index.flatten()[0])
        stop = start + index.numel()
        in_order = torch.equal(index.flatten(), torch.arange(start, stop, dtype=index.dtype))
        value = cast(Node, node.args[3])
        return _Write(base, value, dim, start, stop, True) if in_order else None
    value = cast(Node, node.args[1])
    if name == "select_scatter":
        start = cast(int, argument(node, "index")) % int(extent)
        written = _Write(base, value, dim, start, start + 1, False)
    else:
        given, length = argument(node, "start", None) or 0, shape(value)[dim]
        if argument(node, "step", 1) != 1 or not isinstance(given, int) or not length.is_Integer:
            return None
        start = given % int(extent) if given < 0 else given
        written = _Write(base, value, dim, start, start + int(length), True)
    # Of `out[..., a:b] += part` the part is written, `out` being 0 yet.
    if op(value) == "copy":
        source = cast(Node, value.args[1])
        value = source if shape(source) == shape(value) else value
    elif op(value) == "add" and argument(value, "alpha", 1) == 1:
        for part, other in (value.args[:2], value.args[1::-1]):
            if not is_tensor(part) or not is_tensor(other):
                continue
            part, other = cast(Node, part), cast(Node, other)
            if shape(other) == shape(value) and written.stood_in(read_slice(part)):
                return replace(written, value=other)
    return replace(written, value=value)


# Products that are written back into slices, which torch leaves as `slice_scatter`, as products.
#
# `y[:, 4:] *= g` is `cat([y[:, :4], y[:, 4:] * g], 1)`, and that is a product with y.


def read_written_slices(graph: Graph) -> None:
    """Let products take over from `slice_scatter` in a graph without in-place operators."""
    if not any(op(node) == "slice_scatter" for node in graph.nodes):
        return
    seen: dict[object, Node] = {}
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if op(node) == "slice" and shape(cast(Node, source)) == shape(node):
            let_read(node, cast(Node, source))
        elif op(node) in REORDERS:
            let_read(node, seen.setdefault((node.target, node.args), node))
        elif op(node) == "copy" and _is_alike(node, cast(Node, node.args[1])):
            let_read(node, cast(Node, node.args[1]))
        elif op(node) == "slice_scatter":
            let_read(node, _read_instead(GraphBuilder(graph, node), node))


def _is_alike(a: Node, b: Node) -> bool:
    """True where one tensor may be read in place of the other, by views that were traced, too."""
    strides = [[size_of(step) for step in tensor(node).stride()] for node in (a, b)]
    return shape(a) == shape(b) and strides[0] == strides[1] and tensor(a).dtype == tensor(b).dtype


def _read_instead(builder: GraphBuilder, node: Node) -> Node:
    """Return what to read in place of a write into a slice: a product, or the write itself.

    ONNX writes into rows of the first axis only, so exporters bring an axis there and back: then it
    is a write into what was permuted, with the result permuted in turn.
    """
    base, written = cast(tuple[Node, Node], node.args[:2])
    dim = cast(int, argument(node, "dim", 0)) % rank(node)
    if tensor(written).dtype != tensor(node).dtype:
        return node
    if _is_alike(written, node):
        return written
    if op(base) != "permute" or op(written) != "permute" or base.args[1] != written.args[1]:
        return _product(builder, node, base, written, dim) or node
    order = [axis % rank(base) for axis in cast(list[int], base.args[1])]
    found = _product(
        builder, node, cast(Node, base.args[0]), cast(Node, written.args[0]), order[dim]
    )
    return node if found is None else builder.call(aten.permute.default, found, order)


def _product(builder: GraphBuilder, node: Node, base: Node, written: Node, dim: int) -> Node | None:
    """Return the product that a write is, or None.

    Args:
        node: Says where along `dim` of the base.
    """
    extent, length = shape(base)[dim], shape(written)[dim]
    start = argument(node, "start", None) or 0
    if argument(node, "step", 1) != 1 or not isinstance(start, int):
        return None
    if not extent.is_Integer or not length.is_Integer:
        return None
    first = start % int(extent)
    own = op(written) == "slice" and written.args[0] is base and argument(written, "step", 1) == 1
    if own and (argument(written, "dim", 0), argument(written, "start", None) or 0) == (dim, first):
        return base  # it stood there before: `y[2:] *= g` ends with it
    last = first + int(length)
    parts = [written]
    if first:
        parts.insert(0, builder.call(aten.slice.Tensor, base, dim, 0, first))
    if last < size_of(extent):
        parts.append(builder.call(aten.slice.Tensor, base, dim, last, int(extent)))
    # A product lies in memory as its first factor does.
    return factor_out_slices(builder, builder.call(aten.cat.default, parts, dim))


# Numbers that are written where a mask says so, `scores[mask] = -inf`, as `masked_fill`.
#
# Written by index they would have to be looked up and scattered; and recognition reads masks.


def read_written_masks(program: ExportedProgram) -> None:
    """Let `masked_fill` take over from `index_put` of one number at a bool mask."""
    graph, constant = program.graph_module.graph, Constants(program)
    for node in list(graph.nodes):
        if op(node) != "index_put":
            continue
        given = [index for index in cast(Sequence[Node | None], node.args[1]) if index is not None]
        one_number = tensor(cast(Node, node.args[2])).numel() == 1
        if len(given) != 1 or not one_number or argument(node, "accumulate", False):
            continue
        (mask,) = given
        if tensor(mask).dtype != torch.bool:
            continue
        builder, (whole, value) = GraphBuilder(graph, node), (node.args[0], node.args[2])
        # Indices stand for the dimensions from the first on; those behind them are written whole.
        first = cast(Sequence[Node | None], node.args[1]).index(mask)
        for _ in range(rank(node) - first - rank(mask)):
            mask = builder.call(aten.unsqueeze.default, mask, -1)
        known = constant(through_views(cast(Node, value)))
        if known is not None:
            filled = builder.call(aten.masked_fill.Scalar, whole, mask, known.item())
        else:
            number = builder.call(aten.reshape.default, value, [])
            filled = builder.call(aten.masked_fill.Tensor, whole, mask, number)
        node.replace_all_uses_with(filled)
