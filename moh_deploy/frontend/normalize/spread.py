"""Gates that a matrix of 0 and 1 repeats for each channel of their heads, as a repetition."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import op, rank, tensor
from moh_deploy.frontend.fx.known_values import KnownValues

aten = torch.ops.aten

# Heads times channels of a large model; larger weights are not looked at.
_MOST_ELEMENTS = 1 << 20


def replace_spreads(program: ExportedProgram) -> None:
    """Let repetitions take over from products with matrices that repeat each column.

    `x @ [[1, 1, 0, 0], [0, 0, 1, 1]]` is `repeat_interleave(x, 2, dim=-1)`.
    """
    graph, known = program.graph_module.graph, KnownValues(program)
    for node in list(graph.nodes):
        matrix = _matrix(node, known)
        times = None if matrix is None else _times(matrix)
        if times is not None:
            builder = GraphBuilder(graph, node)
            source = cast(Node, node.args[0])
            spread = builder.call(aten.repeat_interleave.self_int, source, times, -1)
            node.replace_all_uses_with(spread)


def _matrix(node: Node, known: KnownValues) -> Tensor | None:
    """The known matrix [rows, columns] that a node multiplies its input with."""
    if op(node) not in ("matmul", "mm", "linear") or (op(node) == "linear" and len(node.args) > 2):
        return None
    source, weight = cast(tuple[Node, Node], node.args[:2])
    if rank(weight) != 2 or not known.varies(source) or tensor(weight).numel() > _MOST_ELEMENTS:
        return None
    found = known(weight)
    return found.mT if found is not None and op(node) == "linear" else found


def _times(matrix: Tensor) -> int | None:
    """How often a product with the matrix repeats each entry; None where it does something else."""
    rows, columns = matrix.shape
    times = columns // rows if rows else 0
    if times < 2 or times * rows != columns or int(matrix[:, 0].count_nonzero()) != 1:
        return None
    repeats = torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
    return times if torch.equal(matrix, repeats.repeat_interleave(times, 1)) else None
