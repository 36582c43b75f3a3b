"""Operators that bring an axis to one number, or rank and sum along it."""

from collections.abc import Callable
from typing import cast

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph.node_call import MICROSOFT, NodeCall, Result, operator

_Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _kept(x: torch.Tensor) -> torch.dtype | None:
    """The dtype to sum in: torch would make int64 of shorter ones. None where that is its own."""
    return None if x.is_floating_point() or x.dtype == torch.int64 else x.dtype


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=_kept(x)),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}


@operator(*_REDUCTIONS)
def _reduce(call: NodeCall) -> Result:
    function = _REDUCTIONS[call.node.op_type]
    x, axes = call.tensor(0), call.axes(1)
    if axes is None and call.attribute("noop_with_empty_axes", 0):
        return x
    every = list(range(x.ndim))
    return function(x, every if axes is None else axes, bool(call.attribute("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def _arg(call: NodeCall) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if call.attribute("select_last_index", 0):
        raise call.refused("takes the last of equal elements; the first alone is supported")
    function = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    return function(x, axis, bool(call.attribute("keepdims", 1)))


@operator("CumSum")
def _cum_sum(call: NodeCall) -> Result:
    x, axis = call.tensor(0), cast(int, call.numbers(1, "axis")[0])
    turned = bool(call.attribute("reverse", 0))
    x = x.flip(axis) if turned else x
    total = x.cumsum(axis, dtype=_kept(x))
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if turned else total


@operator("TopK")
def _top_k(call: NodeCall) -> Result:
    x, count = call.tensor(0), cast(int, call.numbers(1, "K")[0])
    largest, ordered = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    return list(torch.topk(x, count, call.attribute("axis", -1), largest, ordered))


@operator("Softmax", "LogSoftmax")
def _softmax(call: NodeCall) -> Result:
    x = call.tensor(0)
    function = torch.softmax if call.node.op_type == "Softmax" else torch.log_softmax
    return function(x, call.attribute("axis", -1))


@operator("LpNormalization")
def _lp_normalization(call: NodeCall) -> Result:
    x, axis, power = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    length: torch.Tensor = torch.linalg.vector_norm(x, power, axis, keepdim=True)
    return x / length


# Normalisations, those that ONNX Runtime fuses with a sum among them.


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
