"""Operators that make tensors: of a shape, of a range, and the sizes of others."""

from __future__ import annotations

import math
from typing import cast

import onnx_ir as ir
import torch

from moh_deploy.frontend.load.onnx_graph.call import NodeCall, Result
from moh_deploy.frontend.load.onnx_graph.operators.table import operator
from moh_deploy.frontend.load.onnx_graph.values import ExactNumber, Known, objects


@operator("Shape")
def _shape(call: NodeCall) -> Result:
    shape = call.tensor(0).shape
    end = call.attribute("end", len(shape))
    return Known.of(list(shape)[call.attribute("start", 0) : end])


@operator("Size")
def _size(call: NodeCall) -> Result:
    return Known(objects([math.prod(call.tensor(0).shape)]).reshape(()), torch.int64)


def filling(call: NodeCall) -> tuple[ExactNumber, torch.dtype]:
    """Return the number that ConstantOfShape fills with, and its dtype."""
    value = call.node.attributes.get("value")
    if value is None:
        return 0.0, torch.float32
    array = cast(ir.TensorProtocol, value).numpy()
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return cast(ExactNumber, array.reshape(-1)[0].item()), dtype


@operator("ConstantOfShape")
def _constant_of_shape(call: NodeCall) -> Result:
    number, dtype = filling(call)
    return torch.full(call.sizes(0, "shape"), cast(float, number), dtype=dtype)


@operator("Range")
def _range(call: NodeCall) -> Result:
    start, stop, step = (call.numbers(index, "bounds")[0] for index in range(3))
    value = call.value(1)
    return torch.arange(start, stop, step, dtype=value.dtype)


@operator("EyeLike")
def _eye_like(call: NodeCall) -> Result:
    x = call.tensor(0)
    dtype = call.dtype("dtype") if "dtype" in call.node.attributes else x.dtype
    rows, columns = torch.arange(x.shape[0]), torch.arange(x.shape[1])
    return (columns - rows[:, None] == call.attribute("k", 0)).to(dtype)


@operator("OneHot")
def _one_hot(call: NodeCall) -> Result:
    indices, values = call.tensor(0), call.tensor(2)
    depth = call.numbers(1, "depth")[0]
    axis = call.attribute("axis", -1)
    places = torch.arange(cast(int, depth), dtype=torch.int64)
    # Negative indices count from the end.
    wrapped = torch.where(indices < 0, indices + cast(int, depth), indices)
    hot = wrapped.unsqueeze(-1) == places
    chosen = torch.where(hot, values[1], values[0])
    return chosen.movedim(-1, axis) if axis not in (-1, indices.ndim) else chosen
