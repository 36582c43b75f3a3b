"""Write products with weights in blocks as standard operators, which show each of the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

from moh_deploy.ops import is_moh_op
from moh_deploy.ops.nbits_weight import BLOCK, CONTRIB_DOMAIN
from moh_deploy.ops.op_names import (
    MATMUL_NBITS,
    OUTPUT_PROJECTION_NBITS,
    QUERY_PROJECTION_NBITS,
)
from moh_deploy.package.switches import CONDITION_PREFIX, all_nodes

_PROJECTIONS = (QUERY_PROJECTION_NBITS, OUTPUT_PROJECTION_NBITS)


def has_blocks(graph: onnx.GraphProto) -> bool:
    """Tell whether a product of the graph has its weight in blocks."""
    return any(_is_product(node) or _is_projection(node) for node in all_nodes(graph))


def unpack_blocks(graph: onnx.GraphProto) -> dict[str, int]:
    """Replace each such product by a MatMul with weights that nodes make of what is stored.

    What products read is not rounded: that moves their results a tenth as far as 4 bits do.

    Args:
        graph: Changed in place. Its weights may be elsewhere.

    Returns:
        Name of the numbers of each weight, uint8, to the largest number.
    """
    largest: dict[str, int] = {}
    nodes: list[onnx.NodeProto] = []
    # Copies, since clearing the field takes the originals along.
    for node in [_at_its_place(node) for node in graph.node]:
        if not (_is_product(node) or _is_projection(node)):
            nodes.append(node)
            continue
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        bits, rows = numbers.get("bits", 4), numbers.get("K", numbers.get("in_features", 0))
        packed, scales = node.input[1], node.input[3 if _is_projection(node) else 2]
        if f"{packed}.digits" not in largest:
            nodes += _unpacked(packed, scales, bits, rows)
            largest[f"{packed}.digits"] = 2**bits - 1
        nodes += _product(node, f"{packed}.matrix")
    del graph.node[:]
    graph.node.extend(nodes)
    return largest


def _is_product(node: onnx.NodeProto) -> bool:
    return (node.domain, node.op_type) == (CONTRIB_DOMAIN, "MatMulNBits") or (
        node.op_type == MATMUL_NBITS and is_moh_op(node.domain, node.op_type)
    )


def _is_projection(node: onnx.NodeProto) -> bool:
    return node.op_type in _PROJECTIONS and is_moh_op(node.domain, node.op_type)


def _at_its_place(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node; of an `If` between two ways to run a projection, of that."""
    copied, outputs = onnx.NodeProto(), list(node.output)
    copied.CopyFrom(node)
    if node.op_type == "If" and node.input[0].startswith(CONDITION_PREFIX):
        (inner,) = next(
            attribute.g.node for attribute in node.attribute if attribute.name == "else_branch"
        )
        if _is_projection(inner):
            copied.CopyFrom(inner)
            copied.output[:] = outputs
    return copied


def _product(node: onnx.NodeProto, weight: str) -> Iterator[onnx.NodeProto]:
    bias = node.input[4] if _is_projection(node) and len(node.input) > 4 else ""
    result = node.output[0]
    product = f"{result}.product" if bias else result
    yield helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name)
    if bias:
        yield helper.make_node("Add", [product, bias], [result], name=f"{node.name}.Add")


def _unpacked(packed: str, scales: str, bits: int, rows: int) -> Iterator[onnx.NodeProto]:
    """scales * (digits - half of what bits hold), as [K, N]."""

    def name(part: str) -> str:
        return f"{packed}.{part}"

    def node(op: str, inputs: list[str], part: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [name(part)], **attributes)

    def constant(part: str, dtype: int, values: list[int]) -> onnx.NodeProto:
        tensor = helper.make_tensor(part, dtype, [len(values)], values)
        return helper.make_node("Constant", [], [name(part)], value=tensor)

    yield constant("last", TensorProto.INT64, [-1])
    if bits == 4:  # [N, blocks, 16] to [N, blocks, 16, 2]: two in a byte, the lower half first
        yield constant("mask", TensorProto.UINT8, [15])
        yield constant("half", TensorProto.UINT8, [4])
        yield node("BitwiseAnd", [packed, name("mask")], "low")
        yield node("BitShift", [packed, name("half")], "high", direction="RIGHT")
        for half in ("low", "high"):
            yield node("Unsqueeze", [name(half), name("last")], f"{half}_apart")
        yield node("Concat", [name("low_apart"), name("high_apart")], "digits", axis=-1)
    else:
        yield node("Identity", [packed], "digits")
    yield constant("blocks", TensorProto.INT64, [0, -1, BLOCK])
    yield constant("zero", TensorProto.FLOAT, [2 ** (bits - 1)])
    yield node("Cast", [name("digits")], "wide", to=TensorProto.FLOAT)
    yield node("Sub", [name("wide"), name("zero")], "around_0")
    yield node("Reshape", [name("around_0"), name("blocks")], "in_blocks")  # [N, blocks, 32]
    yield node("Unsqueeze", [scales, name("last")], "scale")
    yield node("Mul", [name("in_blocks"), name("scale")], "numbers")
    for part, values in (("columns", [0, -1]), ("start", [0]), ("stop", [rows]), ("axis", [1])):
        yield constant(part, TensorProto.INT64, values)
    yield node("Reshape", [name("numbers"), name("columns")], "padded")  # [N, blocks * 32]
    places = [name(part) for part in ("start", "stop", "axis")]
    yield node("Slice", [name("padded"), *places], "transposed")
    yield node("Transpose", [name("transposed")], "matrix", perm=[1, 0])
