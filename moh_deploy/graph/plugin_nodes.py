"""Let attention nodes be ONNX's own Attention and a product with the gates, for runtimes that have
one kernel for the former."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from moh_deploy.graph.add_function_bodies import own_attributes, types_of_inputs
from moh_deploy.ops import OPS, is_moh_op, op_names
from moh_deploy.ops.attention_function import variant_of
from moh_deploy.ops.attention_shapes import ATTN_MASK
from moh_deploy.ops.fused_attention_function import FUSED_OPSET, fused_function_body
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.ops.plugin_support import OPEN_SHARE, PLUGINS, PORTABLE, PRESENT_INPUTS
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


# Turn bool masks of plugins into masks that are added: TensorRT's plugins take no bool.

_MASK = 4  # attn_mask is the fifth input of MoHAttention


def float_masks(model: ir.Model, nodes: Collection[str]) -> bool:
    """Give attention nodes, instead of a bool mask, one with 0 where a key is seen, else -inf.

    A mask that several nodes read is turned once for all of one dtype. It keeps its shape, which
    seldom has an axis of heads.

    Args:
        nodes: Names of the nodes, in the main graph.
    """
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in [found for found in model.graph if found.name in nodes]:
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        query = node.inputs[0]
        if mask is None or mask.dtype != ir.DataType.BOOL:
            continue
        assert query is not None
        assert query.dtype is not None
        key = (mask, query.dtype)
        if key not in made:
            made[key] = _added_mask(model, node, mask, query.dtype)
        node.replace_input_with(_MASK, made[key])
    return bool(made)


def _added_mask(model: ir.Model, first: ir.Node, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Write Where(mask, 0, -inf) in front of the first node that reads it."""
    name = f"{mask.name} (added, {dtype.name.lower()})"
    seen, hidden = (
        _constant(model, f"{name}: {word}", number, dtype)
        for word, number in (("seen", 0.0), ("hidden", -np.inf))
    )
    where = ir.node("Where", [mask, seen, hidden], name=name)
    (added,) = where.outputs
    added.name, added.dtype, added.shape = name, dtype, mask.shape
    model.graph.insert_before(first, where)
    return added


def _constant(model: ir.Model, name: str, number: float, dtype: ir.DataType) -> ir.Value:
    array = np.asarray(number, dtype.numpy())
    value = ir.Value(
        name=name,
        type=ir.TensorType(dtype),
        shape=ir.Shape(()),
        const_value=ir.Tensor(array, name=name, dtype=dtype),
    )
    model.graph.register_initializer(value)
    return value


# Let a node list the inputs that it has, and say in an attribute which they are.
#
# TensorRT's parser refuses a node of a plugin that leaves out an input in between.


def close_input_gaps(model: ir.Model) -> tuple[str, ...]:
    """Close the gaps of every node that has a plugin and leaves out an input in between.

    The function bodies of the ops of such nodes are removed: they have parameters that the nodes no
    longer give. What is left is for TensorRT only.

    Returns:
        Names of the nodes that were changed.
    """
    changed = [node for node in model.graph.all_nodes() if _has_gap(node)]
    # A gap is an input of None; at the end of a node ONNX just leaves inputs out.
    for node in changed:
        _close(node)
        model.functions.pop(node.op_identifier(), None)
    return tuple(node.name or "" for node in changed)


def _has_gap(node: ir.Node) -> bool:
    has_plugin = is_moh_op(node.domain, node.op_type) and node.op_type in PLUGINS
    return has_plugin and None in node.inputs


def _close(node: ir.Node) -> None:
    # [q, k, -, gates] -> [q, k, gates], with the bits 0b1011 to tell which they are.
    present = [(place, value) for place, value in enumerate(node.inputs) if value is not None]
    for place, (_, value) in enumerate(present):
        node.replace_input_with(place, value)
    node.resize_inputs(len(present))
    # Bit i: input i of the op is there.
    bits = sum(1 << place for place, _ in present)
    node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, bits))


# Write onto the nodes of TensorRT's plugins what only plugins have.


def nodes_with_plugins(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return the nodes that are plugins if the layers' choices are followed."""
    return tuple(
        node
        for node in model.graph
        if base_domain(node.domain) == KERNEL_DOMAIN and node.op_type in PLUGINS
    )


def tell_fields(
    model: ir.Model, open_shares: Mapping[str, float], *, is_portable: bool = False
) -> bool:
    """Tell plugins the share of open gates in the recorded runs, which tactics are measured with,
    and give fields defaults: the parser warns of each that is missing.

    Args:
        open_shares: Name of an attention node to its share of open gates, where that is known.
        is_portable: The engine may run on other GPUs than the one that it is built on.
    """
    before = [dict(node.attributes) for node in model.graph]
    for node in nodes_with_plugins(model):
        share = open_shares.get(node.name or "")
        if share is not None and OPEN_SHARE in PLUGINS[node.op_type].fields:
            node.attributes.add(ir.AttrFloat32(OPEN_SHARE.name, share))
        if is_portable and PORTABLE in PLUGINS[node.op_type].fields:
            node.attributes.add(ir.AttrInt64(PORTABLE.name, 1))
        if PRESENT_INPUTS.name not in node.attributes:
            node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, 0))
    return [dict(node.attributes) for node in model.graph] != before
