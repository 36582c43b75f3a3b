"""A variant of a model whose float16 and bfloat16 weights move at random."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

ROUNDING_STEP = "moh.rounding_step"
"""Input of the variant: how far a weight may move, as a share of it; 0 for not at all."""

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def has_low_weights(graph: onnx.GraphProto) -> bool:
    """Tell whether the graph holds a float16 or bfloat16 weight."""
    return any(one.data_type in _LOW for one in graph.initializer)


def add_weight_noise(graph: onnx.GraphProto) -> None:
    """Let every low weight move by up to the share ROUNDING_STEP of it, and round it again.

    Every run draws anew; the same session, opened again, draws the same.
    """
    weights = [one for one in graph.initializer if one.data_type in _LOW]
    noise = [node for seed, one in enumerate(weights) for node in _noise(one, seed)]
    for one in weights:
        one.name = _exact(one.name)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*noise, *nodes])
    graph.input.append(helper.make_tensor_value_info(ROUNDING_STEP, TensorProto.FLOAT, []))


def _noise(weight: onnx.TensorProto, seed: int) -> Iterator[onnx.NodeProto]:
    """weight * (1 + step * uniform(-1, 1)), rounded to its dtype."""
    name = weight.name
    wide, draw, share, moved, noisy = (
        f"{name}.{part}" for part in ("wide", "draw", "share", "moved", "noisy")
    )
    yield helper.make_node("Cast", [_exact(name)], [wide], to=TensorProto.FLOAT)
    yield helper.make_node("RandomUniformLike", [wide], [draw], low=-1.0, high=1.0, seed=seed + 1.0)
    yield helper.make_node("Mul", [draw, ROUNDING_STEP], [share])
    yield helper.make_node("Mul", [wide, share], [moved])
    yield helper.make_node("Add", [wide, moved], [noisy])
    yield helper.make_node("Cast", [noisy], [name], to=weight.data_type)


def _exact(name: str) -> str:
    return f"{name}.exact"
