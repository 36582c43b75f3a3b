"""Variant of a model that rounds the operands of attention's products to bfloat16.

`verify` asks by it how far kernels may be away that multiply bfloat16 (`compute_type`): queries,
keys, values and the softmax's weights are rounded there, and nothing else. The inputs of the
variant are those of `weight_noise`: a step of 0 rounds nothing, 1 rounds, and each draw rounds
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from moh_deploy.graph.weight_noise import DRAWN, DRAWN_SIZE, ROUNDING_STEP, add_noise_inputs
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain

# The weights of the softmax exist within the op alone. Each product of a weight and a value is off
# by the rounding of either, so values that are rounded twice, in two places, stand for both.
_ROUNDINGS = {"query": 1, "key": 1, "value": 2}


def round_operands(graph: onnx.GraphProto) -> bool:
    """Round what the kernels of `MoHAttention` multiply; layers that run dense keep float32.

    Args:
        graph: Changed in place, as are the branches in it. Nodes run as function bodies.
    """
    add_noise_inputs(graph)
    _round_in(graph, iter(range(DRAWN_SIZE)))
    return True


def _round_in(graph: onnx.GraphProto, places: Iterator[int]) -> None:
    # Copies, since clearing the field takes the originals along.
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _round_in(attribute.g, places)
        if node.op_type == "MoHAttention" and base_domain(node.domain) == KERNEL_DOMAIN:
            for index, (operand, times) in enumerate(_ROUNDINGS.items()):
                name = f"{node.output[0]}.{operand}"
                for number in range(times):
                    rounded = f"{name}.rounded_{number}"
                    graph.node.extend(_rounding(node.input[index], rounded, next(places)))
                    node.input[index] = rounded
        graph.node.append(node)


def _rounding(value: str, output: str, place: int) -> Iterator[onnx.NodeProto]:
    """value + step * (bfloat16(value * s) / s - value), with s drawn from [1/e, e]: each s rounds
    other digits.

    Args:
        place: Of s among the numbers drawn.
    """
    index = helper.make_tensor("place", TensorProto.INT64, [1], [place])
    yield helper.make_node("Constant", [], [f"{output}.place"], value=index)
    yield helper.make_node("Gather", [DRAWN, f"{output}.place"], [f"{output}.drawn"], axis=1)
    yield helper.make_node("Exp", [f"{output}.drawn"], [f"{output}.s"])  # [1, 1]
    low, wide = TensorProto.BFLOAT16, TensorProto.FLOAT
    yield helper.make_node("Cast", [value], [f"{output}.exact"], to=wide)
    yield helper.make_node("Mul", [f"{output}.exact", f"{output}.s"], [f"{output}.scaled"])
    yield helper.make_node("Cast", [f"{output}.scaled"], [f"{output}.low"], to=low)
    yield helper.make_node("Cast", [f"{output}.low"], [f"{output}.again"], to=wide)
    yield helper.make_node("Div", [f"{output}.again", f"{output}.s"], [f"{output}.rounded"])
    yield helper.make_node("Sub", [f"{output}.rounded", f"{output}.exact"], [f"{output}.error"])
    yield helper.make_node("Mul", [f"{output}.error", ROUNDING_STEP], [f"{output}.move"])
    yield helper.make_node("Add", [f"{output}.exact", f"{output}.move"], [f"{output}.moved"])
    yield helper.make_node("CastLike", [f"{output}.moved", value], [output])
