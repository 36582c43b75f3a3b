"""The MoH operators of our own packages, written out as models in PyTorch write them.

So a package is recognised as the model that it was made from: the same layers, and the same
routers.
"""

from functools import partial
from typing import Any

import torch

from moh_deploy import ops
from moh_deploy.frontend.load.onnx_graph.node_call import NodeCall, Result, operator
from moh_deploy.frontend.load.onnx_graph.operators import attention
from moh_deploy.frontend.torch_ops.bodies import aggregated_heads, seen_by_position, token_conv
from moh_deploy.ops.op_names import KERNEL_DOMAIN

_moh = partial(operator, domain=KERNEL_DOMAIN)


def _attributes(call: NodeCall, spec: ops.OpSpec) -> list[Any]:
    """Return all attributes in the order of the spec, those that the node leaves out by default."""
    given: dict[str, Any] = {
        attribute.name: call.attribute(attribute.name, attribute.default)
        for attribute in spec.attributes
        if attribute.name in call.node.attributes
    }
    values = spec.complete(given)
    return [values[attribute.name] for attribute in spec.attributes]


def _gated(heads: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Multiply heads [B, H, S, D] with gates [B, S, H]."""
    return heads * gates.transpose(1, 2).unsqueeze(-1).to(heads.dtype)


@_moh(ops.MOH_ATTENTION.name)
def _attention(call: NodeCall) -> Result:
    query, key, value, gates = (call.tensor(index) for index in range(4))
    num_heads, num_kv_heads, scale, is_causal = _attributes(call, ops.MOH_ATTENTION)
    packed = query.ndim == 3
    if packed:
        query = attention.split_heads(query, int(num_heads))
        key, value = (attention.split_heads(tensor, int(num_kv_heads)) for tensor in (key, value))
    mask, lengths, ranges = (call.optional(index) for index in (4, 5, 6))
    causal = bool(is_causal)
    if lengths is not None or ranges is not None:
        # No operator has lengths or ranges: then positions are in the mask.
        mask = attention.hidden_by_either(
            mask, seen_by_position(query, key, lengths, ranges, is_causal=causal)
        )
        causal = False
    heads = attention.attend(
        query,
        key,
        value,
        mask,
        scale=float(scale),
        causal=causal,
        # The last query sees all keys.
        past=key.shape[2] - query.shape[2] if causal else 0,
    )
    gated = _gated(heads, gates)
    return attention.merge_heads(gated) if packed else gated


@_moh(ops.MOH_QUERY_PROJECTION.name, ops.MOH_OUTPUT_PROJECTION.name)
def _projection(call: NodeCall) -> Result:
    bias = call.optional(3)
    product = call.tensor(0) @ call.tensor(1)
    return product if bias is None else product + bias


@_moh(ops.MOH_ROUTER.name)
def _router(call: NodeCall) -> Result:
    routed, shared, stages = (call.optional(index) for index in range(3))
    top_k, num_shared_heads, gate_mode = _attributes(call, ops.MOH_ROUTER)
    present = next(stage for stage in (routed, shared, stages) if stage is not None)
    gates: list[torch.Tensor] = []
    if shared is not None:
        gates.append(shared.softmax(-1) * int(num_shared_heads))
    elif num_shared_heads:
        gates.append(present.new_ones([*present.shape[:-1], int(num_shared_heads)]))
    if routed is not None:
        scores, count = routed.softmax(-1), int(top_k)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(count, dim=-1).indices, 1.0)
        if gate_mode != "mask":
            kept = scores * chosen
            eps = torch.finfo(torch.float32).eps
            chosen = kept / kept.sum(-1, keepdim=True).clamp(min=eps) * count
        gates.append(chosen)
    if stages is not None:
        weights = stages.softmax(-1) * 2
        # Of the shared heads, then of the routed ones.
        first = 0 if num_shared_heads else 1
        gates = [gate * weights[..., i : i + 1] for i, gate in enumerate(gates, start=first)]
    return torch.cat(gates, dim=-1) if len(gates) > 1 else gates[0]


@_moh(ops.MOH_AGGREGATED_ATTENTION.name)
def _aggregated_attention(call: NodeCall) -> Result:
    inputs: list[Any] = [
        call.optional(index) for index in range(len(ops.MOH_AGGREGATED_ATTENTION.inputs))
    ]
    before, gates, behind = inputs[:5], call.tensor(5), inputs[6:]
    attributes = _attributes(call, ops.MOH_AGGREGATED_ATTENTION)
    heads = aggregated_heads(*before, *behind, *attributes)
    return attention.merge_heads(_gated(heads, gates)).to(call.tensor(0).dtype)


@_moh(ops.MOH_TOKEN_CONV.name)
def _token_conv(call: NodeCall) -> Result:
    inputs: list[Any] = [call.optional(index) for index in range(len(ops.MOH_TOKEN_CONV.inputs))]
    return token_conv(*inputs, *_attributes(call, ops.MOH_TOKEN_CONV))
