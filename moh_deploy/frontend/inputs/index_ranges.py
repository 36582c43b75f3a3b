"""Which integers an input of an ONNX graph may hold, where the graph itself says it."""

from __future__ import annotations

from moh_deploy.frontend.load.onnx_graph.node import Graph

_MOVES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose"}


def index_range(graph: Graph, name: str) -> tuple[int, int] | None:
    """Return the first and last row of the tables that an input looks up; None if it does not.

    An input that does more than that, ids that are also compared with a padding id, is still legal
    within its table.
    """
    rows: list[int] = []
    values = {name}
    for node in graph.nodes:
        read = [value for value in node.inputs if value in values]
        if not read:
            continue
        if node.op_type in _MOVES and node.inputs[0] in values:
            values.update(node.outputs)
        elif node.op_type == "Gather" and len(node.inputs) > 1 and node.inputs[1] in values:
            table = graph.weights.get(node.inputs[0])
            axis = node.attributes.get("axis", 0)
            if table is not None and isinstance(axis, int):
                rows.append(table.shape.numpy()[axis])
        elif node.op_type == "EmbedLayerNormalization":
            # Ids, segments and positions, and the table of each.
            tables = {0: 2, 1: 4, 8: 3}
            for place, table_place in tables.items():
                if place < len(node.inputs) and node.inputs[place] in values:
                    table = graph.weights.get(node.inputs[table_place])
                    rows += [] if table is None else [table.shape.numpy()[0]]
    return (0, min(rows) - 1) if rows else None
