"""Products that are written back into slices, which torch leaves as `slice_scatter`, as products.

`y[:, 4:] *= g` is `cat([y[:, :4], y[:, 4:] * g], 1)`, and that is a product with y.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.axes import size_of
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import argument, let_read, op, rank, shape, tensor
from moh_deploy.frontend.fx.views import REORDERS
from moh_deploy.frontend.normalize.factor import factor_out_slices

aten = torch.ops.aten


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
            let_read(node, _read(GraphBuilder(graph, node), node))


def _is_alike(a: Node, b: Node) -> bool:
    """True where one tensor may be read in place of the other, by views that were traced, too."""
    strides = [[size_of(step) for step in tensor(node).stride()] for node in (a, b)]
    return shape(a) == shape(b) and strides[0] == strides[1] and tensor(a).dtype == tensor(b).dtype


def _read(builder: GraphBuilder, node: Node) -> Node:
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
    """Return the product that a write is; None if it is none.

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
    if _stood_there(base, written, dim, first):
        return base
    last = first + int(length)
    parts = [written]
    if first:
        parts.insert(0, builder.call(aten.slice.Tensor, base, dim, 0, first))
    if last < size_of(extent):
        parts.append(builder.call(aten.slice.Tensor, base, dim, last, int(extent)))
    # A product lies in memory as its first factor does.
    return factor_out_slices(builder, builder.call(aten.cat.default, parts, dim))


def _stood_there(base: Node, written: Node, dim: int, first: int) -> bool:
    """True where what is written was in that place before: `y[2:] *= g` ends with it."""
    if op(written) != "slice" or written.args[0] is not base or argument(written, "step", 1) != 1:
        return False
    start = argument(written, "start", None) or 0
    return argument(written, "dim", 0) == dim and start == first
