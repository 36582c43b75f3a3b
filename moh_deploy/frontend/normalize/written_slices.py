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
            _read(GraphBuilder(graph, node), node)


def _is_alike(a: Node, b: Node) -> bool:
    """True where one tensor may be read in place of the other, by views that were traced, too."""
    strides = [[size_of(step) for step in tensor(one).stride()] for one in (a, b)]
    return shape(a) == shape(b) and strides[0] == strides[1] and tensor(a).dtype == tensor(b).dtype


def _read(builder: GraphBuilder, node: Node) -> None:
    base, written = cast(tuple[Node, Node], node.args[:2])
    if tensor(written).dtype != tensor(node).dtype:
        return
    if _is_alike(written, node):
        let_read(node, written)
        return
    dim = cast(int, argument(node, "dim", 0)) % rank(node)
    extent, length = shape(base)[dim], shape(written)[dim]
    start = argument(node, "start", None) or 0
    if argument(node, "step", 1) != 1 or not isinstance(start, int) or not extent.is_Integer:
        return
    first = start % int(extent)
    last = first + int(length)
    parts = [written]
    if first:
        parts.insert(0, builder.call(aten.slice.Tensor, base, dim, 0, first))
    if last < size_of(extent):
        parts.append(builder.call(aten.slice.Tensor, base, dim, last, int(extent)))
    product = factor_out_slices(builder, builder.call(aten.cat.default, parts, dim))
    if product is not None:  # which lies in memory as its first factor does
        let_read(node, product)
