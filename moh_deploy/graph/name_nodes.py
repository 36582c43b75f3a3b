"""Name every node after the module it computes for."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

# Where the exporter writes the modules around a node, outermost first, and the node's own name.
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(model: ir.Model, *, keep: frozenset[str]) -> bool:
    """Name nodes `blocks.0.mlp.MatMul`, `blocks.0.mlp.MatMul#2` and so on.

    A node of which the exporter says nothing keeps its name.

    Args:
        keep: Names that stay: those of the layers' nodes.
    """
    seen, before = Counter(keep), [node.name for node in model.graph]
    for node in model.graph:
        if node.name in keep or _SCOPES not in node.metadata_props:
            continue
        name = f"{_module_path(node)}.{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return [node.name for node in model.graph] != before


def _module_path(node: ir.Node) -> str:
    """`model` for the model itself."""
    *modules, _ = ast.literal_eval(node.metadata_props[_SCOPES])
    return (modules[-1] if modules else "") or "model"
