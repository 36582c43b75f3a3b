"""Variant of a model in int8 or int4 whose weights, and in int8 what they are multiplied with, move
by up to one step of their scales.

`verify` asks by it how far rounding to integers moves the model's results. The graph is changed
where it is opened, like those of `weight_noise`, whose inputs these are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

from moh_deploy.graph.unpack_blocks import has_blocks, unpack_blocks
from moh_deploy.graph.weight_noise import DRAWN, DRAWN_SIZE, ROUNDING_STEP, add_noise_inputs

_RANGES = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}


def has_integer_products(graph: onnx.GraphProto) -> bool:
    """Tell whether weights or operands of the graph are in 8 or 4 bits."""
    return has_blocks(graph) or any(node.op_type == "MatMulInteger" for node in graph.node)


def add_quantization_noise(graph: onnx.GraphProto) -> bool:
    """Let operands of integer products move by up to ROUNDING_STEP steps of their scales, and round
    them again: a weight wherever it is stored, an activation wherever it is rounded.

    The variant has inputs more: see `weight_noise`.

    Args:
        graph: Changed in place.
    """
    # The noisy operand takes the name, so that its readers need no change.
    digits = unpack_blocks(graph)
    weights = {initializer.name: initializer for initializer in graph.initializer}
    read = {
        name for node in graph.node if node.op_type == "MatMulInteger" for name in node.input[:2]
    }
    nodes: list[onnx.NodeProto] = []
    for name in sorted(read & set(weights)):
        nodes += _noise(name, weights[name].data_type, len(nodes))
        weights[name].name = _exact(name)
    # Copies, since clearing the field takes the originals along.
    for node in [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]:
        nodes.append(node)
        # DynamicQuantizeLinear: what it rounds, its scale, its zero point.
        if node.op_type == "DynamicQuantizeLinear":
            name, node.output[0] = node.output[0], _exact(node.output[0])
            nodes += _noise(name, TensorProto.UINT8, len(nodes))
        elif node.output and node.output[0] in digits:
            name, node.output[0] = node.output[0], _exact(node.output[0])
            nodes += _noise(name, TensorProto.UINT8, len(nodes), largest=digits[name])
    del graph.node[:]
    graph.node.extend(nodes)
    add_noise_inputs(graph)
    for name, numbers in (("one", [1]), ("axis", [1]), ("size", [DRAWN_SIZE])):
        graph.initializer.append(helper.make_tensor(f"moh.{name}", TensorProto.INT64, [1], numbers))
    for dtype, limits in _RANGES.items():
        for name, limit in zip(_limits(dtype), limits, strict=True):
            graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [limit]))
    return True


def _noise(
    name: str, dtype: int, seed: int, *, largest: int | None = None
) -> Iterator[onnx.NodeProto]:
    """round(operand + step * uniform(-1, 1)), within what its dtype holds, up to `largest`."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], **attributes)

    def part(text: str) -> str:
        return f"{name}.{text}"

    # A place of its own in the drawn row for each operand; the sizes of activations are known when
    # they are there.
    start = helper.make_tensor("start", TensorProto.INT64, [1], [seed * 7919 % DRAWN_SIZE])
    yield helper.make_node("Constant", [], [part("start")], value=start)
    yield node("Shape", [_exact(name)], part("shape"))
    yield node("ReduceProd", [part("shape")], part("count"), keepdims=1)
    yield node("Add", [part("start"), part("count")], part("stop"))
    yield node("Div", [part("stop"), "moh.size"], part("rows_before"))
    yield node("Add", [part("rows_before"), "moh.one"], part("rows"))
    yield node("Concat", ["moh.one", part("rows")], part("times"), axis=0)
    yield node("Tile", [DRAWN, part("times")], part("enough"))
    yield node("Slice", [part("enough"), part("start"), part("stop"), "moh.axis"], part("flat"))
    yield node("Reshape", [part("flat"), part("shape")], part("draw"))
    yield node("Mul", [part("draw"), ROUNDING_STEP], part("move"))
    yield node("Cast", [_exact(name)], part("wide"), to=TensorProto.FLOAT)
    yield node("Add", [part("wide"), part("move")], part("moved"))
    yield node("Round", [part("moved")], part("whole"))
    limits = _limits(dtype)
    if largest is not None:
        limit = helper.make_tensor("largest", TensorProto.FLOAT, [], [largest])
        yield helper.make_node("Constant", [], [part("largest")], value=limit)
        limits = limits[0], part("largest")
    yield node("Clip", [part("whole"), *limits], part("limited"))
    yield node("Cast", [part("limited")], name, to=dtype)


def _limits(dtype: int) -> tuple[str, str]:
    kind = TensorProto.DataType.Name(dtype).lower()
    return f"moh.smallest_{kind}", f"moh.largest_{kind}"


def _exact(name: str) -> str:
    return f"{name}.exact"
