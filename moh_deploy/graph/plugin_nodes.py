"""Let attention nodes be ONNX's own Attention and a product with the gates, for runtimes that have
one kernel for the former."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from moh_deploy.graph.load_model import own_attributes, store_array, types_of_inputs
from moh_deploy.ops import OPS, is_moh_op, op_names
from moh_deploy.ops.attention_function import variant_of
from moh_deploy.ops.attention_shapes import ATTN_MASK
from moh_deploy.ops.fused_attention_function import FUSED_OPSET, fused_function_body
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.ops.plugin_support import OPEN_SHARE, PLUGINS, PORTABLE, PRESENT_INPUTS

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
    mask = (*node.inputs, None)[ATTN_MASK]
    if mask is not None and mask.dtype not in (ir.DataType.BOOL, _query(node).dtype):
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


def _query(node: ir.Node) -> ir.Value:
    query = node.inputs[0]
    assert query is not None
    return query


def fuse_attention(model: ir.Model, nodes: Collection[str]) -> dict[str, str]:
    """Put Attention and a product with the gates in the place of nodes of MoHAttention.

    Args:
        model: Without functions; its values have dtypes and shapes.
        nodes: Names of the nodes, for which `why_not_fused` says nothing.

    Returns:
        Name of each of these nodes to that of its Attention.
    """

    def attentions() -> set[str]:
        return {node.name or "" for node in model.graph if node.op_type == _STANDARD}

    names: dict[str, str] = {}
    for node in [found for found in model.graph if found.name in nodes]:
        assert node.name is not None
        earlier = attentions()
        spec, types = OPS[node.op_type], types_of_inputs(node)
        query, key = types[:2]
        assert query is not None
        assert key is not None
        # [B, S, H*D] or [B, H, S, D]. Two axes of unknown size need not be of the same.
        is_square = query.shape[-2] is not None and query.shape[-2] == key.shape[-2]
        model.opset_imports[""] = max(FUSED_OPSET, model.opset_imports.get("", 0))
        variant = variant_of(types, own_attributes(spec, node))
        opset = model.opset_imports[""]
        body = fused_function_body(variant, square=is_square, opset=opset)
        function = ir.serde.deserialize_function(body)
        # Of a domain of its own: nodes that stay plugins must not be taken for this one.
        node.domain = function.domain = _DOMAIN
        model.functions[function.identifier()] = function
        InlinePass()(model)
        model.functions.clear()
        (names[node.name],) = attentions() - earlier
    return names


def float_masks(model: ir.Model, nodes: Collection[str]) -> bool:
    """Give attention nodes, instead of a bool mask, one with 0 where a key is seen, else -inf:
    TensorRT's plugins take no bool.

    A mask that several nodes read is turned once for all of one dtype. It keeps its shape, which
    seldom has an axis of heads.

    Args:
        nodes: Names of nodes in the main graph; also of routers, which have no masks.
    """
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in [found for found in model.graph if found.name in nodes]:
        mask = (*node.inputs, *[None] * _INPUTS)[ATTN_MASK]
        if mask is None or mask.dtype != ir.DataType.BOOL:
            continue
        dtype = _query(node).dtype
        assert dtype is not None
        if (mask, dtype) not in made:
            # Where(mask, 0, -inf), in front of the first node that reads it.
            name = f"{mask.name} (added, {dtype.name.lower()})"
            numbers = (("seen", 0.0), ("hidden", -np.inf))
            seen, hidden = (
                store_array(model.graph, f"{name}: {word}", np.asarray(number, dtype.numpy()))
                for word, number in numbers
            )
            where = ir.node("Where", [mask, seen, hidden], name=name)
            (added,) = where.outputs
            added.name, added.dtype, added.shape = name, dtype, mask.shape
            model.graph.insert_before(node, where)
            made[mask, dtype] = added
        node.replace_input_with(ATTN_MASK, made[mask, dtype])
    return bool(made)


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
    changed = [
        node
        for node in model.graph.all_nodes()
        if is_moh_op(node.domain, node.op_type) and node.op_type in PLUGINS and None in node.inputs
    ]
    # A gap is an input of None; at the end of a node ONNX just leaves inputs out.
    for node in changed:
        # [q, k, -, gates] -> [q, k, gates], with the bits 0b1011 to tell which they are.
        present = [(place, value) for place, value in enumerate(node.inputs) if value is not None]
        for place, (_, value) in enumerate(present):
            node.replace_input_with(place, value)
        node.resize_inputs(len(present))
        bits = sum(1 << place for place, _ in present)
        node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, bits))
        model.functions.pop(node.op_identifier(), None)
    return tuple(node.name or "" for node in changed)


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
