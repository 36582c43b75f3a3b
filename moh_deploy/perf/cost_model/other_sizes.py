"""Sizes other than the example's, at which another choice may be predicted to be faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.ops import OPS, op_names
from moh_deploy.package import LayerInfo

DimRanges = Mapping[str, tuple[int, int | None]]

# Predictions are made up to so many times the example's size: it is there to be like what will run.
_TIMES = 16


def other_sizes(dims: Mapping[str, int], dim_ranges: DimRanges) -> list[dict[str, int]]:
    """Return the example's sizes, and then those with one dimension at powers of two.

    Args:
        dims: Dimension to the example's size.
        dim_ranges: The smallest and largest size that a dimension may have, where that is limited.
    """
    return [
        dict(dims),
        # One dimension at a time: the product of all would be too many, and the choice mostly
        # changes with one of them.
        *(
            {**dims, name: size}
            for name in dims
            for size in _powers(dims[name], dim_ranges.get(name))
        ),
    ]


def at_other_sizes(layer: LayerInfo, node: ir.Node, sizes: Mapping[str, int]) -> LayerInfo | None:
    """Return a layer with the sizes that its attention node has where the model's inputs have
    these; None where the node does not tell."""
    if layer.op == op_names.AGGREGATED_ATTENTION:
        return None  # Its shapes do not tell how far its keys are pooled.
    names = [op_input.name for op_input in OPS[node.op_type].inputs]
    # gates [B, S, H]; K [B, T, Hkv*D] or [B, Hkv, T, D].
    gates, keys = (_shape(node.inputs[names.index(name)], sizes) for name in ("gates", "K"))
    if gates is None or keys is None:
        return None
    kv_len = keys[1 if len(keys) == 3 else 2]
    return replace(layer, batch=gates[0], seq_len=gates[1], kv_len=kv_len)


def _powers(example: int, limits: tuple[int, int | None] | None) -> Iterator[int]:
    smallest, largest = limits or (1, None)
    largest = min(largest or _TIMES * example, _TIMES * example)
    size = 1
    while size <= largest:
        if size >= max(smallest, 1):
            yield size
        size *= 2


def _shape(value: ir.Value | None, sizes: Mapping[str, int]) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    # A symbolic size may be an expression of one dimension, such as `past+1`. What torch made up,
    # or made of two names, is not known.
    named = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    dims = [size_at(dim, sizes) for dim in named]
    known = [dim for dim in dims if dim is not None]
    # One unknown size makes the shape unknown: a prediction would be of another layer.
    return known if len(known) == len(dims) else None
