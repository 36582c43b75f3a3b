"""Operators that bring an axis to one number, or rank and sum along it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch

from moh_deploy.frontend.load.onnx_graph.call import NodeCall, Result
from moh_deploy.frontend.load.onnx_graph.operators.table import operator

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


def _reduce(call: NodeCall, function: _Reduction) -> Result:
    x, axes = call.tensor(0), call.axes(1)
    if axes is None and call.attribute("noop_with_empty_axes", 0):
        return x
    every = list(range(x.ndim))
    return function(x, every if axes is None else axes, bool(call.attribute("keepdims", 1)))


for _name, _function in _REDUCTIONS.items():
    operator(_name)(partial(_reduce, function=_function))


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
