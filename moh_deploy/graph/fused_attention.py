"""Let attention nodes be ONNX's own Attention and a product with the gates, for runtimes that have
one kernel for the former."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from moh_deploy.graph.add_function_bodies import own_attributes, types_of_inputs
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.attention_function import variant_of
from moh_deploy.ops.attention_shapes import ATTN_MASK
from moh_deploy.ops.fused_attention_function import FUSED_OPSET, fused_function_body
from moh_deploy.ops.spec import TensorType

_STANDARD = "Attention"
_DOMAIN = "moh.fused"
_INPUTS = 5  # Q, K, V, gates and attn_mask
# Operators that mean something else from a version up to FUSED_OPSET on: a model with one of them
# is not brought to that version. Others took more dtypes, or defaults that say what was meant.
_CHANGED = {"GridSample": 20, "DFT": 20, "GroupNormalization": 21}


def why_not_fused(model: ir.Model, node: ir.Node) -> str | None:
    """Return why a node cannot be ONNX's Attention; None if it can."""
    if node.op_type != op_names.ATTENTION:
        return f"{node.op_type} is more than scaled dot-product attention"
    if any(value is not None for value in node.inputs[_INPUTS:]):
        return "it has inputs behind attn_mask, which Attention does not have"
    if _has_other_bias(node):
        # A row of -1e9 weighs all keys alike; of -inf, which it is in float16, it gives NaN.
        return "its mask is of another dtype than its queries, in which large numbers are infinite"
    if node.inputs[0] is node.inputs[1]:
        # Seen with TensorRT-RTX 1.7.1, in every dtype and size; of other values V may be one, too.
        return "its queries are its keys, on which TensorRT-RTX ends with SIGSEGV"
    scale = node.attributes["scale"].as_float()
    if scale <= 0:
        return f"its scale is {scale:g}, and runtimes expect one above 0"
    version = model.opset_imports.get("", FUSED_OPSET)
    changed = {node.op_type for node in model.graph.all_nodes() if node.domain == ""} & {
        name for name, since in _CHANGED.items() if version < since
    }
    if changed:
        return (
            f"Attention needs opset {FUSED_OPSET}, in which {', '.join(sorted(changed))} is"
            f" another operator than in the model's opset {version}"
        )
    return None


def _has_other_bias(node: ir.Node) -> bool:
    """Tell whether a mask of numbers has a dtype of its own, which Attention does not take."""
    query, mask = node.inputs[0], (*node.inputs, None)[ATTN_MASK]
    assert query is not None
    return mask is not None and mask.dtype not in (ir.DataType.BOOL, query.dtype)


def fuse_attention(model: ir.Model, nodes: Collection[str]) -> dict[str, str]:
    """Put Attention and a product with the gates in the place of nodes of MoHAttention.

    Args:
        model: Without functions; its values have dtypes and shapes.
        nodes: Names of the nodes, for which `why_not_fused` says nothing.

    Returns:
        Name of each of these nodes to that of its Attention.
    """
    names: dict[str, str] = {}
    for node in [found for found in model.graph if found.name in nodes]:
        assert node.name is not None
        earlier = _attentions(model)
        _give_body(model, node)
        InlinePass()(model)
        model.functions.clear()
        (names[node.name],) = _attentions(model) - earlier
    return names


def _give_body(model: ir.Model, node: ir.Node) -> None:
    spec, types = OPS[node.op_type], types_of_inputs(node)
    variant = variant_of(types, own_attributes(spec, node))
    opset = max(FUSED_OPSET, model.opset_imports.get("", 0))
    function = ir.serde.deserialize_function(
        fused_function_body(variant, square=_is_square(types[0], types[1]), opset=opset)
    )
    model.opset_imports[""] = opset
    # Of a domain of its own: nodes that stay plugins must not be taken for this one.
    node.domain = function.domain = _DOMAIN
    model.functions[function.identifier()] = function


def _is_square(query: TensorType | None, key: TensorType | None) -> bool:
    """Tell whether there are as many keys as queries, whatever the sizes."""
    assert query is not None
    assert key is not None
    length, kv_length = query.shape[-2], key.shape[-2]
    # [B, S, H*D] or [B, H, S, D]. Two axes of unknown size need not be of the same.
    return length is not None and length == kv_length


def _attentions(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if node.op_type == _STANDARD}
