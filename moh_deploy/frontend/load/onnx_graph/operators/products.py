"""Products of matrices, convolutions and pooling."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph import node_call

node_call.operator("MatMul")(lambda call: torch.matmul(call.tensor(0), call.tensor(1)))


@node_call.operator("Gemm")
def _gemm(call: node_call.NodeCall) -> node_call.Result:
    x, y = call.tensor(0), call.tensor(1)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    x = x.t() if call.attribute("transA", 0) else x
    bias = call.optional(2)
    if alpha == beta == 1 and call.attribute("transB", 0) and (bias is None or bias.ndim == 1):
        return functional.linear(x, y, bias)  # as most models have it
    product = x @ (y.t() if call.attribute("transB", 0) else y)
    product = product if alpha == 1 else product * alpha
    if bias is None:
        return product
    return product + (bias if beta == 1 else bias * beta)


@node_call.operator("FusedMatMul", domain=node_call.MICROSOFT)
def _fused_matmul(call: node_call.NodeCall) -> node_call.Result:
    x, y = call.tensor(0), call.tensor(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.refused("transposes its batch axes, which is not supported")
    x = x.transpose(-2, -1) if call.attribute("transA", 0) else x
    y = y.transpose(-2, -1) if call.attribute("transB", 0) else y
    alpha = call.attribute("alpha", 1.0)
    return x @ y if alpha == 1 else (x @ y) * alpha


node_call.operator("Einsum")(
    lambda call: torch.einsum(call.required("equation", str), *call.tensors())
)
_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


@node_call.operator("Conv")
def _conv(call: node_call.NodeCall) -> node_call.Result:
    x, weight = call.tensor(0), call.tensor(1)
    axes = x.ndim - 2
    if not 1 <= axes <= 3:
        raise call.refused(f"convolves {axes} axes; 1 to 3 are supported")
    strides, dilations = call.ints("strides", [1] * axes), call.ints("dilations", [1] * axes)
    x, padding = _padded(call, x, weight.shape[2:], strides, dilations)
    return _CONVOLUTIONS[axes - 1](
        x, weight, call.optional(2), strides, padding, dilations, call.attribute("group", 1)
    )


def _padded(
    call: node_call.NodeCall,
    x: torch.Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    fill: float = 0.0,
) -> tuple[torch.Tensor, list[int]]:
    """Return the input, padded where both sides differ, and what is left to be padded."""
    axes = len(kernel)
    auto = call.attribute("auto_pad", "NOTSET")
    pads = call.ints("pads", [0] * 2 * axes)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = []
        sizes = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        for size, taps, stride, dilation in sizes:
            if node_call.is_symbol(size) and stride != 1:
                raise call.refused("pads a dynamic axis to the same size at a stride")
            reach = (taps - 1) * dilation + 1
            covered = reach - 1 if stride == 1 else (-(-size // stride) - 1) * stride + reach - size
            totals.append(max(covered, 0))
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    elif auto == "VALID":
        pads = [0] * 2 * axes
    before, after = pads[:axes], pads[axes:]
    if before == after:
        return x, before
    flat = [number for axis in range(axes)[::-1] for number in (before[axis], after[axis])]
    return functional.pad(x, flat, value=fill), [0] * axes


@node_call.operator("ConvTranspose")
def _conv_transpose(call: node_call.NodeCall) -> node_call.Result:
    x, weight = call.tensor(0), call.tensor(1)
    axes = x.ndim - 2
    pads = call.ints("pads", [0] * 2 * axes)
    if pads[:axes] != pads[axes:] or "output_shape" in call.node.attributes or axes > 3:
        raise call.refused("pads its sides differently, which is not supported")
    return _TRANSPOSED[axes - 1](
        x,
        weight,
        call.optional(2),
        call.ints("strides", [1] * axes),
        pads[:axes],
        call.ints("output_padding", [0] * axes),
        call.attribute("group", 1),
        call.ints("dilations", [1] * axes),
    )


@node_call.operator("AveragePool")
def _average_pool(call: node_call.NodeCall) -> node_call.Result:
    x, kernel = call.tensor(0), call.ints("kernel_shape", ())
    axes = len(kernel)
    ones = [1] * axes
    if call.ints("dilations", ones) != ones or axes > 3:
        raise call.refused("averages windows with gaps, which is not supported")
    strides, counts_padding = call.ints("strides", ones), call.attribute("count_include_pad", 0)
    padded, padding = _padded(call, x, kernel, strides, ones)
    if padded is not x and not counts_padding:
        raise call.refused("pads its sides differently and does not count them: not supported")
    functions = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
    return functions[axes - 1](
        padded, kernel, strides, padding, bool(call.attribute("ceil_mode", 0)), bool(counts_padding)
    )


@node_call.operator("MaxPool")
def _max_pool(call: node_call.NodeCall) -> node_call.Result:
    x, kernel = call.tensor(0), call.ints("kernel_shape", ())
    axes = len(kernel)
    strides, dilations = call.ints("strides", [1] * axes), call.ints("dilations", [1] * axes)
    if len(list(filter(None, call.node.outputs))) > 1 or axes > 3:
        raise call.refused("returns indices, which is not supported")
    padded, padding = _padded(call, x, kernel, strides, dilations, fill=-torch.inf)
    functions = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
    return functions[axes - 1](
        padded, kernel, strides, padding, dilations, bool(call.attribute("ceil_mode", 0))
    )


@node_call.operator("GlobalAveragePool")
def _global_average_pool(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@node_call.operator("GlobalMaxPool")
def _global_max_pool(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    return x.amax(list(range(2, x.ndim)), keepdim=True)


# Operators that change the size of images.


@node_call.operator("Resize")
def _resize(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    mode = call.attribute("mode", "nearest")
    place = call.attribute("coordinate_transformation_mode", "half_pixel")
    if call.attribute("antialias", 0) or "axes" in call.node.attributes:
        raise call.refused("smooths, or names its axes, which is not supported")
    kinds = {
        ("nearest", "asymmetric"): ("nearest", None),
        ("linear", "half_pixel"): ("linear", False),
        ("linear", "pytorch_half_pixel"): ("linear", False),
        ("linear", "align_corners"): ("linear", True),
        ("cubic", "half_pixel"): ("bicubic", False),
        ("cubic", "pytorch_half_pixel"): ("bicubic", False),
        ("cubic", "align_corners"): ("bicubic", True),
    }
    if (mode, place) not in kinds:
        raise call.refused(f"resizes by {mode} with {place}, which is not supported")
    kind, corners = kinds[mode, place]
    if kind == "nearest" and call.attribute("nearest_mode", "round_prefer_floor") != "floor":
        raise call.refused("rounds to the nearest pixel but by floor, which is not supported")
    if kind == "bicubic" and call.attribute("cubic_coeff_a", -0.75) != -0.75:
        raise call.refused("has a cubic coefficient other than -0.75, which is not supported")
    if kind == "linear":
        kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    if call.has(3):
        size, factors = call.sizes(3, "sizes")[2:], None
    else:
        size, factors = None, [cast(float, number) for number in call.numbers(2, "scales")[2:]]
    return functional.interpolate(
        x,
        size=size,
        scale_factor=factors,
        mode=kind,
        align_corners=corners,
        recompute_scale_factor=False if factors else None,
    )


@node_call.operator("GridSample")
def _grid_sample(call: node_call.NodeCall) -> node_call.Result:
    kinds = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return functional.grid_sample(
        call.tensor(0),
        call.tensor(1),
        mode=kinds[call.attribute("mode", "linear")],
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=bool(call.attribute("align_corners", 0)),
    )


# Operators that bring an axis to one number, or rank and sum along it.

_Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _sum_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype to sum in: torch would make int64 of shorter ones. None where that is its own."""
    return None if x.is_floating_point() or x.dtype == torch.int64 else x.dtype


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=_sum_dtype(x)),
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


@node_call.operator(*_REDUCTIONS)
def _reduce(call: node_call.NodeCall) -> node_call.Result:
    function = _REDUCTIONS[call.node.op_type]
    x, axes = call.tensor(0), call.axes(1)
    if axes is None and call.attribute("noop_with_empty_axes", 0):
        return x
    every = list(range(x.ndim))
    return function(x, every if axes is None else axes, bool(call.attribute("keepdims", 1)))


@node_call.operator("ArgMax", "ArgMin")
def _arg(call: node_call.NodeCall) -> node_call.Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if call.attribute("select_last_index", 0):
        raise call.refused("takes the last of equal elements; the first alone is supported")
    function = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    return function(x, axis, bool(call.attribute("keepdims", 1)))


@node_call.operator("CumSum")
def _cum_sum(call: node_call.NodeCall) -> node_call.Result:
    x, axis = call.tensor(0), cast(int, call.numbers(1, "axis")[0])
    turned = bool(call.attribute("reverse", 0))
    x = x.flip(axis) if turned else x
    total = x.cumsum(axis, dtype=_sum_dtype(x))
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if turned else total


@node_call.operator("TopK")
def _top_k(call: node_call.NodeCall) -> node_call.Result:
    x, count = call.tensor(0), cast(int, call.numbers(1, "K")[0])
    largest, ordered = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    return list(torch.topk(x, count, call.attribute("axis", -1), largest, ordered))


@node_call.operator("Softmax", "LogSoftmax")
def _softmax(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    function = torch.softmax if call.node.op_type == "Softmax" else torch.log_softmax
    return function(x, call.attribute("axis", -1))


@node_call.operator("LpNormalization")
def _lp_normalization(call: node_call.NodeCall) -> node_call.Result:
    x, axis, power = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    length: torch.Tensor = torch.linalg.vector_norm(x, power, axis, keepdim=True)
    return x / length


# Normalisations, those that ONNX Runtime fuses with a sum among them.


@node_call.operator("LayerNormalization")
def _layer_normalization(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    first = call.attribute("axis", -1) % x.ndim
    # Mean and deviation are what training reads.
    if any(call.node.outputs[1:]):
        raise call.refused("returns mean and deviation, which is not supported")
    shape, epsilon = list(x.shape[first:]), call.attribute("epsilon", 1e-5)
    return functional.layer_norm(x, shape, call.optional(1), call.optional(2), epsilon)


@node_call.operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_normalization(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    first = call.attribute("axis", -1) % x.ndim
    return _rms_norm(x, call.tensor(1), call.attribute("epsilon", 1e-5), first)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, first: int) -> torch.Tensor:
    # In float32, as the operator says and models write it.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = wide.pow(2).mean(list(range(first, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(square + epsilon)).to(x.dtype) * weight


def _skipped(call: node_call.NodeCall, bias: int) -> torch.Tensor:
    """Input + skip + bias, what the fused normalisations begin with."""
    total = call.tensor(0) + call.tensor(1)
    added = call.optional(bias)
    return total if added is None else total + added


@node_call.operator("SkipLayerNormalization", domain=node_call.MICROSOFT)
def _skip_layer_normalization(call: node_call.NodeCall) -> node_call.Result:
    total = _skipped(call, 4)
    weight, bias = call.tensor(2), call.optional(3)
    epsilon = call.attribute("epsilon", 1e-12)
    normal = functional.layer_norm(total, [total.shape[-1]], weight, bias, epsilon)
    return normal, None, None, total


@node_call.operator("SkipSimplifiedLayerNormalization", domain=node_call.MICROSOFT)
def _skip_simplified_layer_normalization(call: node_call.NodeCall) -> node_call.Result:
    total = _skipped(call, 3)
    epsilon = call.attribute("epsilon", 1e-12)
    return _rms_norm(total, call.tensor(2), epsilon, total.ndim - 1), None, None, total


@node_call.operator("EmbedLayerNormalization", domain=node_call.MICROSOFT)
def _embed_layer_normalization(call: node_call.NodeCall) -> node_call.Result:
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


@node_call.operator("BatchNormalization")
def _batch_normalization(call: node_call.NodeCall) -> node_call.Result:
    if call.attribute("training_mode", 0):
        raise call.refused("is in training mode")
    x, weight, bias, mean, variance = call.tensors()
    epsilon = call.attribute("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


@node_call.operator("InstanceNormalization")
def _instance_normalization(call: node_call.NodeCall) -> node_call.Result:
    x, weight, bias = call.tensors()
    epsilon = call.attribute("epsilon", 1e-5)
    return functional.instance_norm(x, None, None, weight, bias, True, 0.0, epsilon)


@node_call.operator("GroupNormalization")
def _group_normalization(call: node_call.NodeCall) -> node_call.Result:
    x, weight, bias = call.tensors()
    groups, epsilon = call.required("num_groups", int), call.attribute("epsilon", 1e-5)
    if call.opset < 21:  # one factor for each group
        weight, bias = (tensor.repeat_interleave(x.shape[1] // groups) for tensor in (weight, bias))
    return functional.group_norm(x, groups, weight, bias, epsilon)
