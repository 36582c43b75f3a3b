"""Give a dynamic dimension one size, for a runtime that has to know it beforehand."""

from __future__ import annotations

import onnx_ir as ir


def fix_dimension(model: ir.Model, name: str, size: int) -> bool:
    """Write a size in place of a dimension's name, wherever a value of the graph has it."""
    inner = [value for node in model.graph for value in node.outputs]
    changed = False
    for value in dict.fromkeys([*model.graph.inputs, *inner]):
        dims = [] if value.shape is None else list(value.shape)
        fixed = [size if isinstance(d, ir.SymbolicDim) and d.value == name else d for d in dims]
        if fixed != dims:
            value.shape, changed = ir.Shape(fixed), True
    return changed
