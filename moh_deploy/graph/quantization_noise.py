"""Variant of a model in int8 or int4 whose weights, and in int8 what they are multiplied with, move
by up to one step of their scales.

`verify` asks by it how far rounding to integers moves the model's results. The graph is changed
where it is opened, like those of `weight_noise`, whose inputs these are.
"""

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

from moh_deploy.graph.weight_noise import DRAWN, DRAWN_SIZE, ROUNDING_STEP, add_noise_inputs
from moh_deploy.ops import is_moh_op
from moh_deploy.ops.nbits_product import BLOCK, CONTRIB_DOMAIN
from moh_deploy.ops.op_names import (
    MATMUL_NBITS,
    OUTPUT_PROJECTION_NBITS,
    QUERY_PROJECTION_NBITS,
)
from moh_deploy.package.graph_nodes import CONDITION_PREFIX, all_nodes

# Write products with weights in blocks as standard operators, which show each of the numbers.

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
