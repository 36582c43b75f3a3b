"""Operators that move elements and compute none: reshape, transpose, slices, gather, scatter."""

import math
from typing import cast

import onnx_ir as ir
import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph.node_call import (
    MICROSOFT,
    ExactNumber,
    Known,
    NodeCall,
    NodeValue,
    Result,
    is_symbol,
    objects,
    operator,
)


@operator("Reshape")
def _reshape(call: NodeCall) -> Result:
    x, shape = call.tensor(0), call.sizes(1, "shape")
    if not call.attribute("allowzero", 0):
        # 0 keeps a size.
        shape = [
            x.shape[axis] if not is_symbol(size) and size == 0 else size
            for axis, size in enumerate(shape)
        ]
    return x.reshape(shape)


@operator("Flatten")
def _flatten(call: NodeCall) -> Result:
    x = call.tensor(0)
    axis = call.attribute("axis", 1) % x.ndim if call.attribute("axis", 1) != x.ndim else x.ndim
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def _transpose(call: NodeCall) -> Result:
    x = call.tensor(0)
    return x.permute(call.ints("perm", range(x.ndim)[::-1]))


@operator("Squeeze")
def _squeeze(call: NodeCall) -> Result:
    x, axes = call.tensor(0), call.axes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if not is_symbol(size) and size == 1]
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@operator("Unsqueeze")
def _unsqueeze(call: NodeCall) -> Result:
    x, axes = call.tensor(0), call.axes(1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def _expand(call: NodeCall) -> Result:
    x, shape = call.tensor(0), call.sizes(1, "shape")
    # Both are aligned at the end, and a 1 on either side takes the other's size.
    rank = max(x.ndim, len(shape))
    wide = [1] * (rank - len(shape)) + shape
    own = [1] * (rank - x.ndim) + list(x.shape)
    pairs = zip(own, wide, strict=True)
    return x.expand([mine if not is_symbol(size) and size == 1 else size for mine, size in pairs])


operator("Concat")(lambda call: torch.cat(call.tensors(), dim=call.required("axis", int)))


@operator("Split")
def _split(call: NodeCall) -> Result:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if call.has(1):
        return list(torch.split(x, call.sizes(1, "split"), dim=axis))
    count = call.attribute("num_outputs", len(call.node.outputs))
    return list(torch.split(x, -(-x.shape[axis] // count), dim=axis))


# Exporters write the largest number of 32 or 64 bits for an end that is not there.
_TO_THE_END = 1 << 31


def slices(call: NodeCall, rank: int) -> dict[int, slice]:
    """Return the slice along each axis that a Slice node cuts."""
    starts, ends = call.sizes(1, "starts"), call.sizes(2, "ends")
    axes = call.sizes(3, "axes") if call.has(3) else list(range(len(starts)))
    steps = call.sizes(4, "steps") if call.has(4) else [1] * len(starts)
    found: dict[int, slice] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        beyond = not is_symbol(end) and (
            end >= _TO_THE_END - 1 if step > 0 else end <= 1 - _TO_THE_END
        )
        found[axis % rank] = slice(start, None if beyond else end, step)
    return found


@operator("Slice")
def _slice(call: NodeCall) -> Result:
    x = call.tensor(0)
    for axis, cut in slices(call, x.ndim).items():
        before = (slice(None),) * axis
        if cut.step > 0:
            x = x[before + (cut,)]
            continue
        # Torch has no negative steps: the whole axis is turned round.
        whole = not is_symbol(cut.start) and (cut.start == -1 or cut.start >= _TO_THE_END - 1)
        if not whole or cut.stop is not None:
            raise call.refused("cuts a part of an axis backwards; a whole axis alone is supported")
        x = x.flip(axis)[before + (slice(None, None, -cut.step),)]
    return x


@operator("Gather")
def _gather(call: NodeCall) -> Result:
    x, index = call.tensor(0), call.value(1)
    axis = call.attribute("axis", 0) % x.ndim
    if isinstance(index, Known) and index.shape == ():
        return x.select(axis, cast(int, index.flat()[0]))
    found = call.tensor(1)
    if axis == 0 and x.ndim == 2 and found.ndim > 0 and not isinstance(index, Known):
        return functional.embedding(found.to(torch.int64), x)  # negative ones no exporter writes
    flat = found.reshape(-1).to(torch.int64)
    if isinstance(index, Known) and any(
        not is_symbol(number) and number < 0 for number in index.flat()
    ):
        # From the end, which index_select does not take. What is computed no exporter makes so.
        flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    taken = x.index_select(axis, flat)
    if found.ndim == 1:
        return taken
    return taken.reshape([*x.shape[:axis], *found.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def _gather_elements(call: NodeCall) -> Result:
    return call.tensor(0).gather(call.attribute("axis", 0), call.tensor(1).to(torch.int64))


@operator("GatherND")
def _gather_nd(call: NodeCall) -> Result:
    x, index = call.tensor(0), call.tensor(1).to(torch.int64)
    batch_dims = call.attribute("batch_dims", 0)
    if not batch_dims:
        return x[tuple(index.unbind(-1))]
    # The batch axes go along: an index of their own for each.
    shape = index.shape[:-1]
    own = [
        torch.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        for axis in range(batch_dims)
    ]
    return x[tuple(own) + index.unbind(-1)]


def _consecutive(index: NodeValue) -> range | None:
    """Return the rows that an index [n, 1] of ScatterND names, if they are a slice."""
    if not isinstance(index, Known) or len(index.shape) != 2 or index.shape[1] != 1:
        return None
    rows = cast(list[int], index.flat())
    if not rows or any(map(is_symbol, rows)) or rows[0] < 0:
        return None
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    found = range(rows[0], rows[0] + step * len(rows), step) if step > 0 else None
    return found if found is not None and list(found) == rows else None


@operator("ScatterND")
def _scatter_nd(call: NodeCall) -> Result:
    x, updates = call.tensor(0), call.tensor(2)
    reduction = call.attribute("reduction", "none")
    rows = _consecutive(call.value(1))
    if rows is not None and reduction == "none":
        # What exporters make of writing into a slice.
        return torch.slice_scatter(x, updates, 0, rows.start, rows.stop, rows.step)
    places = tuple(call.tensor(1).to(torch.int64).unbind(-1))
    if reduction in ("none", "add"):
        return torch.index_put(x, places, updates, accumulate=reduction == "add")
    raise call.refused(f"reduces by '{reduction}'; none and add are supported")


@operator("ScatterElements")
def _scatter_elements(call: NodeCall) -> Result:
    x, index, updates = call.tensor(0), call.tensor(1).to(torch.int64), call.tensor(2)
    axis = call.attribute("axis", 0)
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        value = call.value(2)
        if isinstance(value, Known) and len(set(value.flat())) == 1:
            return x.scatter(axis, index, cast(float, value.flat()[0]))
        return x.scatter(axis, index, updates)
    kinds = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, index, updates, kinds[reduction], include_self=True)


operator("Tile")(lambda call: call.tensor(0).repeat(call.sizes(1, "repeats")))


@operator("Pad")
def _pad(call: NodeCall) -> Result:
    x, pads = call.tensor(0), call.sizes(1, "pads")
    axes = [int(axis) % x.ndim for axis in call.sizes(3, "axes")] if call.has(3) else range(x.ndim)
    count = len(pads) // 2
    before_after: dict[int, tuple[int, int]] = {
        axis: (pads[place], pads[count + place]) for place, axis in enumerate(axes)
    }
    mode = call.attribute("mode", "constant")
    # Torch counts from the last axis, and other modes take the padded axes alone.
    first = min((a for a, two in before_after.items() if two != (0, 0)), default=x.ndim)
    flat = [
        number for a in range(x.ndim - 1, first - 1, -1) for number in before_after.get(a, (0, 0))
    ]
    if mode == "constant":
        value = call.numbers(2, "constant_value")[0] if call.has(2) else 0
        return functional.pad(x, flat, value=cast(float, value)) if flat else x
    kinds = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return functional.pad(x, flat, mode=kinds[mode]) if flat else x


@operator("Trilu")
def _trilu(call: NodeCall) -> Result:
    x = call.tensor(0)
    diagonal = cast(int, call.numbers(1, "k")[0]) if call.has(1) else 0
    return x.triu(diagonal) if call.attribute("upper", 1) else x.tril(diagonal)


operator("Trilu", domain=MICROSOFT)(_trilu)


@operator("DepthToSpace")
def _depth_to_space(call: NodeCall) -> Result:
    x, block = call.tensor(0), call.required("blocksize", int)
    if call.attribute("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    split = x.reshape(batch, block, block, channels // (block * block), height, width)
    moved = split.permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(batch, channels // (block * block), height * block, width * block)


@operator("SpaceToDepth")
def _space_to_depth(call: NodeCall) -> Result:
    x, block = call.tensor(0), call.required("blocksize", int)
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // block, block, width // block, block)
    moved = split.permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(batch, channels * block * block, height // block, width // block)


# Operators that make tensors: of a shape, of a range, and the sizes of others.


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
