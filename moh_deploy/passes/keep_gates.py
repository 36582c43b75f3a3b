"""Let readers find each layer's gates without making them outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import onnx_ir as ir

from moh_deploy.package.manifest import AttentionOp

ATTENTION_OPS = get_args(AttentionOp)


@dataclass(frozen=True)
class LayerNames:
    """Names of one layer in the model.

    Attributes:
        gates: Value that holds the gates [B, S, H].
        node: The node of the layer's attention; None where it stays ordinary operators.
    """

    gates: str
    node: str | None


def keep_gates(
    model: ir.Model, *, paths: list[str], replaced: list[bool]
) -> tuple[LayerNames, ...]:
    """Take the gates off the end of the model's outputs, and name them and the nodes of the
    attention after their layers.

    Args:
        paths: Module path of each layer, in the order in which the layers run.
        replaced: Whether the layer has a node of ATTENTION_OPS.
    """
    graph = model.graph
    first = len(graph.outputs) - len(paths)
    gates = list(graph.outputs[first:])
    names = _unique(paths)
    attention = iter([node for node in graph if node.op_type in ATTENTION_OPS])
    layers: list[LayerNames] = []
    for name, value, has_node in zip(names, gates, replaced, strict=True):
        value.name = f"{name}.gates"
        node = None
        if has_node:
            node = next(attention)
            node.name = f"{name}.{node.op_type}"
        layers.append(LayerNames(value.name, None if node is None else node.name))
    del graph.outputs[first:]
    return tuple(layers)


def _unique(paths: list[str]) -> list[str]:
    """A layer that runs several times has a name for each run: `attn`, `attn#2`."""
    seen: dict[str, int] = {}
    names: list[str] = []
    for path in paths:
        base = path or "model"
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base}#{seen[base]}")
    return names
