"""View what each layer's attention computes in one form, to record a fingerprint of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, flat, leaves
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.rewrite.rewritten import Rewrite


def view_attention(program: ExportedProgram, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
    """Insert, for each layer, a view [B, S, H * value size] of what the original operators compute:
    the heads, each multiplied by its gate.

    After all else is inserted: who reads a value decides what may take its place.
    """
    graph = program.graph_module.graph
    viewed = [
        replace(
            rewrite,
            attention_view=_view(rewrite.layer, GraphBuilder(graph, rewrite.layer.node.next)),
        )
        for rewrite in rewrites
    ]
    program.graph_module.recompile()
    return viewed


def drop_views(rewrites: Sequence[Rewrite]) -> None:
    """Take back the views of attentions that an op takes over from: it may stand behind them."""
    for rewrite in rewrites:
        node = None if rewrite.replacement is None else rewrite.attention_view
        while node is not None and node is not rewrite.layer.node and not node.users:
            source = node.all_input_nodes[0]
            node.graph.erase_node(node)
            node = source


def _view(layer: MoHLayer, builder: GraphBuilder) -> Node | None:
    """None where batch and tokens are no axes of it, or a size cannot be expressed."""
    # [B, H, S, D] or [B, S, H, D] -> [B, S, H*D], of which a fingerprint is taken for each token.
    batch, tokens, heads = leaves(layer.batch), leaves(layer.tokens), leaves(layer.heads)
    layout = flat(layer.layout)
    if not {*batch, *tokens} <= set(layout):
        return None
    # The sum over the heads is viewed where the model has nothing else: [B, S, value size].
    inner = tuple(axis for axis in layout if axis not in {*batch, *tokens, *heads})
    summed = tuple(axis for axis in heads if axis in layout)
    wanted: Layout = (batch, tokens, (*summed, *inner))
    try:
        return LayoutBuilder(builder).arrange(Operand(layer.node, layer.layout), wanted)
    except UnknownSizeError:
        return None
