"""Take a name from a weight, so that another value can have it: names of values are unique."""

from __future__ import annotations

import onnx_ir as ir


def free_name(graph: ir.Graph, name: str) -> bool:
    """Rename the weight of this name, if there is one: torch.onnx calls weights by their paths."""
    weight = graph.initializers.get(name)
    if weight is not None:
        weight.name = f"{name}.inner"
    return weight is not None
