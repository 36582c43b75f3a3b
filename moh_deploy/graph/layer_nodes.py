"""Read properties of layers from a model's nodes that the manifest does not hold."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.ops import op_names
from moh_deploy.package import LayerInfo, current_choice
from moh_deploy.package.graph_nodes import all_nodes


@dataclass(frozen=True)
class LayerNodes:
    """The operators of one layer."""

    op: str | None  # operator of its attention node; None if it was not replaced
    is_causal: bool = False  # a query sees its own position and those before it
    has_mask: bool = False  # scores have a mask or a bias that differs from query to query
    # Width of what its MoHQueryProjection reads; None without one, or where the weight is not a
    # constant.
    query_features: int | None = None
    output_features: int | None = None  # width of what its MoHOutputProjection makes; or None
    window: int = 0  # neighbours in the window of a MoHAggregatedAttention; 0 for others


def layer_nodes(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> tuple[LayerNodes, ...]:
    """Return the operators of each layer; None stands in for what the graph lacks."""
    nodes = {node.name: node for node in all_nodes(graph) if node.name}
    # Shapes of weights stand in the model even where their data is in another file.
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    sizes = dims | {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
    }
    of_keys = {name for name, known in sizes.items() if known[-2:-1] == (1,)}
    return tuple(_of_layer(layer, nodes, dims, of_keys) for layer in layers)


def _of_layer(
    layer: LayerInfo,
    nodes: Mapping[str, onnx.NodeProto],
    dims: Mapping[str, tuple[int, ...]],
    of_keys: Container[str],  # tensors of one row for all queries
) -> LayerNodes:
    node = nodes.get(layer.node or "")
    query, output = (
        _weight_shape(nodes.get(name or ""), dims)
        for name in (layer.query_projection, layer.output_projection)
    )
    if node is None:
        return LayerNodes(None)
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    # attn_mask is the fifth input of MoHAttention, and may be left out in between.
    mask = "".join(node.input[4:5]) if node.op_type == op_names.ATTENTION else ""
    return LayerNodes(
        op=node.op_type,
        is_causal=bool(numbers.get("is_causal")),
        has_mask=bool(mask) and mask not in of_keys,
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


# Count how much work skipping heads can save, and how much of it the layers' choices do.
#
# Counted at the example's sizes: the two matrix products of an attention core, queries with keys
# and weights with values, and the projections of queries and outputs that are operators of their
# own. A multiply-add counts as two. Not counted: other projections, router, softmax.

# Count the multiply-adds of a model's products with weights, at some sizes.

_PRODUCTS = ("MatMul", "Gemm", op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


def product_flops(model: ir.Model, sizes: Mapping[str, int]) -> int | None:
    """Return 2 * rows * elements of the weight, summed over all products with a stored matrix.

    Args:
        model: The shapes of its values are known.
        sizes: Of the dynamic dimensions.

    Returns:
        None where the rows of a product are not known.
    """
    total = 0
    for node in model.graph:
        if node.op_type not in _PRODUCTS:
            continue
        weight, made = node.inputs[1], node.outputs[0]
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        rows = [
            size_at(dim if isinstance(dim, int) else dim.value, sizes)
            for dim in (made.shape or ())[:-1]
        ]
        if made.shape is None or any(size is None for size in rows):
            return None
        total += 2 * math.prod(size or 0 for size in rows) * weight.const_value.size
    return total


def parameters(model: ir.Model) -> int:
    """Return how many numbers the stored floats of a model are."""
    stored = (value.const_value for value in model.graph.initializers.values())
    return sum(
        tensor.size for tensor in stored if tensor is not None and tensor.dtype.is_floating_point()
    )


def attention_flops(layer: LayerInfo) -> int | None:
    """Return 4 * B * H * S * T * D, the dense cost of a layer's core; None if a size is unknown."""
    if layer.seq_len is None or layer.kv_len is None or layer.head_dim is None:
        return None
    # Two products of 2 * S * T * D a head: queries with keys, weights with values.
    tokens = layer.batch * layer.seq_len
    return 4 * tokens * layer.num_heads * layer.kv_len * layer.head_dim


def projection_flops(layer: LayerInfo, nodes: LayerNodes) -> int | None:
    """Return 2 * B * S * H * D * (features before + behind) of a layer's projections that are
    operators, 0 if none are; None if a size is unknown."""
    # Each is a product of [B * S, features] with [features, H * D], or the other way round.
    features = [
        size
        for name, size in (
            (layer.query_projection, nodes.query_features),
            (layer.output_projection, nodes.output_features),
        )
        if name is not None
    ]
    known = [size for size in features if size is not None]
    if layer.seq_len is None or layer.head_dim is None or len(known) < len(features):
        return None
    return 2 * layer.batch * layer.seq_len * layer.num_heads * layer.head_dim * sum(known)


def skippable_flops(layer: LayerInfo, nodes: LayerNodes) -> int | None:
    """Return the part that belongs to heads no token chose; None if unknown, 0 if not replaced."""
    if not layer.replaced:
        return 0
    return _of_closed_heads(layer, attention_flops(layer), projection_flops(layer, nodes))


def skipped_flops(layer: LayerInfo, nodes: LayerNodes, dims: Mapping[str, int]) -> int | None:
    """Return the part of it that kernels skip as the layer is chosen to run at these sizes."""
    choice = current_choice(layer, dims)
    if choice is None or choice == "dense":
        return 0
    # Kernels for attention alone: the projections compute every head.
    if choice == "sparse":
        return _of_closed_heads(layer, attention_flops(layer))
    return skippable_flops(layer, nodes)


def _of_closed_heads(layer: LayerInfo, *dense: int | None) -> int | None:
    known = [flops for flops in dense if flops is not None]
    if layer.active_share is None or len(known) < len(dense):
        return None
    # Closed heads are all of one cost, so the share of open (token, head) pairs tells the rest.
    return round(sum(known) * (1 - layer.active_share))
