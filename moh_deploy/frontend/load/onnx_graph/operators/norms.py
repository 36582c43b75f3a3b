"""Normalisations, those that ONNX Runtime fuses with a sum among them."""

from __future__ import annotations

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph.call import NodeCall, Result
from moh_deploy.frontend.load.onnx_graph.operators.table import MICROSOFT, operator


@operator("LayerNormalization")
def _layer_normalization(call: NodeCall) -> Result:
    x = call.tensor(0)
    first = call.attribute("axis", -1) % x.ndim
    # Mean and deviation are what training reads.
    if any(call.node.outputs[1:]):
        raise call.refused("returns mean and deviation, which is not supported")
    shape, epsilon = list(x.shape[first:]), call.attribute("epsilon", 1e-5)
    return functional.layer_norm(x, shape, call.optional(1), call.optional(2), epsilon)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_normalization(call: NodeCall) -> Result:
    x = call.tensor(0)
    first = call.attribute("axis", -1) % x.ndim
    return _rms_norm(x, call.tensor(1), call.attribute("epsilon", 1e-5), first)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, first: int) -> torch.Tensor:
    # In float32, as the operator says and models write it.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = wide.pow(2).mean(list(range(first, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(square + epsilon)).to(x.dtype) * weight


def _skipped(call: NodeCall, bias: int) -> torch.Tensor:
    """Input + skip + bias, what the fused normalisations begin with."""
    total = call.tensor(0) + call.tensor(1)
    added = call.optional(bias)
    return total if added is None else total + added


@operator("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer_normalization(call: NodeCall) -> Result:
    total = _skipped(call, 4)
    weight, bias = call.tensor(2), call.optional(3)
    epsilon = call.attribute("epsilon", 1e-12)
    normal = functional.layer_norm(total, [total.shape[-1]], weight, bias, epsilon)
    return normal, None, None, total


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_simplified_layer_normalization(call: NodeCall) -> Result:
    total = _skipped(call, 3)
    epsilon = call.attribute("epsilon", 1e-12)
    return _rms_norm(total, call.tensor(2), epsilon, total.ndim - 1), None, None, total


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def _embed_layer_normalization(call: NodeCall) -> Result:
    """Words, positions and segments, summed and normalised, as BERT begins."""
    ids, segments = call.tensor(0), call.optional(1)
    total = functional.embedding(ids, call.tensor(2))
    if call.has(8):
        total = total + functional.embedding(call.tensor(8), call.tensor(3))
    else:
        total = total + call.tensor(3)[: ids.shape[1]]
    if segments is not None:
        total = total + functional.embedding(segments, call.tensor(4))
    epsilon = call.attribute("epsilon", 1e-12)
    normal = functional.layer_norm(
        total, [total.shape[-1]], call.tensor(5), call.tensor(6), epsilon
    )
    mask = call.optional(7)
    lengths = ids.new_zeros(ids.shape[0]) if mask is None else mask.sum(-1)
    return normal, lengths.to(torch.int32), total


@operator("BatchNormalization")
def _batch_normalization(call: NodeCall) -> Result:
    if call.attribute("training_mode", 0):
        raise call.refused("is in training mode")
    x, weight, bias, mean, variance = call.tensors()
    epsilon = call.attribute("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def _instance_normalization(call: NodeCall) -> Result:
    x, weight, bias = call.tensors()
    epsilon = call.attribute("epsilon", 1e-5)
    return functional.instance_norm(x, None, None, weight, bias, True, 0.0, epsilon)


@operator("GroupNormalization")
def _group_normalization(call: NodeCall) -> Result:
    x, weight, bias = call.tensors()
    groups, epsilon = call.required("num_groups", int), call.attribute("epsilon", 1e-5)
    if call.opset < 21:  # one factor for each group
        weight, bias = (tensor.repeat_interleave(x.shape[1] // groups) for tensor in (weight, bias))
    return functional.group_norm(x, groups, weight, bias, epsilon)
