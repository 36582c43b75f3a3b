"""Read properties of layers from a model's nodes that the manifest does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from moh_deploy.ops import op_names
from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.switches import all_nodes


@dataclass(frozen=True)
class LayerNodes:
    """The operators of one layer.

    Attributes:
        op: Operator of its attention node; None if it was not replaced.
        is_causal: A query sees its own position and those before it.
        has_mask: The scores have a mask or a bias.
        query_features: Width of what its MoHQueryProjection reads; None without one, or where the
            weight is not a constant.
        output_features: Width of what its MoHOutputProjection makes; None likewise.
        window: Neighbours in the window of a MoHAggregatedAttention; 0 for others.
    """

    op: str | None
    is_causal: bool = False
    has_mask: bool = False
    query_features: int | None = None
    output_features: int | None = None
    window: int = 0


def layer_nodes(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> tuple[LayerNodes, ...]:
    """Return the operators of each layer; None stands in for what the graph lacks."""
    nodes = {node.name: node for node in all_nodes(graph) if node.name}
    # Shapes of weights stand in the model even where their data is in another file.
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return tuple(_of_layer(layer, nodes, dims) for layer in layers)


def _of_layer(
    layer: LayerInfo, nodes: Mapping[str, onnx.NodeProto], dims: Mapping[str, tuple[int, ...]]
) -> LayerNodes:
    node = nodes.get(layer.node or "")
    query, output = (
        _weight_shape(nodes.get(name or ""), dims)
        for name in (layer.query_projection, layer.output_projection)
    )
    if node is None:
        return LayerNodes(None)
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    return LayerNodes(
        op=node.op_type,
        is_causal=bool(numbers.get("is_causal")),
        # attn_mask is the fifth input of MoHAttention, and may be left out in between.
        has_mask=node.op_type == op_names.ATTENTION and len(node.input) > 4 and bool(node.input[4]),
        window=numbers.get("kernel_height", 0) * numbers.get("kernel_width", 0),
        # W is [C, H * D] for queries, and [H * D, C] for the output.
        query_features=query[0] if query else None,
        output_features=output[1] if output else None,
    )


def _weight_shape(
    node: onnx.NodeProto | None, dims: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Return rows and columns of a projection's weight."""
    if node is None or node.input[1] not in dims:
        return None
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    # A weight of 4 bits is packed: the node says what it was.
    if "in_features" in numbers:
        return numbers["in_features"], numbers["out_features"]
    return dims[node.input[1]]
