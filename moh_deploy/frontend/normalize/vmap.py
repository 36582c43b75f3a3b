"""Functions that `torch.vmap` runs for all heads, as operators on all heads.

What is traced are the operators on one head, between `_add_batch_dim` and `_remove_batch_dim`, on
tensors of a kind that nobody else can read.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.constants import Constants, StoredNodes
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, source_line
from moh_deploy.frontend.normalize.stacked_ops import (
    Stacked,
    apply_stacked,
    for_each_head,
    heads_at,
    heads_in_front,
)


def write_out_vmap(program: ExportedProgram) -> None:
    """Let operators on all heads take over from those that were traced under `torch.vmap`.

    Raises:
        ExportError: If it is not known how an operator works on all heads.
    """
    graph = program.graph_module.graph
    if not any(op(node) == "_add_batch_dim" for node in graph.nodes):
        return
    stored = StoredNodes(graph, Constants(program))
    found: dict[Node, Stacked] = {}
    region: list[Node] = []
    for node in list(graph.nodes):
        builder = GraphBuilder(graph, node)
        if op(node) == "_add_batch_dim":
            source, dim = cast(tuple[Node, int], node.args[:2])
            if source in found:
                raise _refused(node, "vmap of vmap")
            in_front = heads_in_front(builder, source, dim)
            found[node] = Stacked(in_front, by_head=True, stored=stored(source))
        elif op(node) == "_remove_batch_dim":
            source, _, size, dim = cast(tuple[Node, int, int, int], node.args)
            result = found.get(source, Stacked(source, by_head=False))
            whole = for_each_head(builder, result, size)
            node.replace_all_uses_with(heads_at(builder, whole, dim))
        elif any(source in found for source in node.all_input_nodes):
            found[node] = _on_all(builder, node, found)
        else:
            continue
        region.append(node)
    for node in reversed(region):
        graph.erase_node(node)
    program.graph_module.recompile()


def _on_all(builder: GraphBuilder, node: Node, found: dict[Node, Stacked]) -> Stacked:
    """Insert an operator on all heads."""

    def given(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [given(part) for part in value]
        if isinstance(value, Node) and is_tensor(value):
            return found.get(value, Stacked(value, by_head=False))
        return value

    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise _refused(node, op(node))
    arguments = {
        formal.name: given(argument(node, formal.name)) for formal in target._schema.arguments
    }
    result = apply_stacked(builder, node, arguments)
    if result is None:
        raise _refused(node, str(target))
    return Stacked(result, by_head=True)


def _refused(node: Node, what: str) -> ExportError:
    place = source_line(node)
    return ExportError(
        f"{what} under torch.vmap has no form for all heads at once"
        + (f" ({place})." if place else "."),
        hint="Write it with one more dimension instead, or as a loop over the heads.",
    )
