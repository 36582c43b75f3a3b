"""Numbers that are written where a mask says so, `scores[mask] = -inf`, as `masked_fill`.

Written by index they would have to be looked up and scattered; and recognition reads masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.constants import Constants
from moh_deploy.frontend.fx.graph import argument, op, rank, tensor
from moh_deploy.frontend.fx.views import through_views

aten = torch.ops.aten


def read_written_masks(program: ExportedProgram) -> None:
    """Let `masked_fill` take over from `index_put` of one number at a bool mask."""
    graph, constant = program.graph_module.graph, Constants(program)
    for node in list(graph.nodes):
        mask = _mask(node) if op(node) == "index_put" else None
        if mask is None:
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


def _mask(node: Node) -> Node | None:
    """The bool mask that is a write's only index; None where it writes anything else."""
    indices = cast(Sequence[Node | None], node.args[1])
    given = [index for index in indices if index is not None]
    one_number = tensor(cast(Node, node.args[2])).numel() == 1
    if len(given) != 1 or not one_number or argument(node, "accumulate", False):
        return None
    return given[0] if tensor(given[0]).dtype == torch.bool else None
