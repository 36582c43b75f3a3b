"""Variant of a model in few bits whose weights, and in int8 what they are multiplied with, move
by up to one step of their scales.

`verify` asks by it how far rounding to integers moves the model's results. The graph is changed
where it is opened, like those of `weight_noise`, whose inputs these are.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.graph.weight_noise import DRAWN_SIZE, add_noise_inputs, nodes_of
from moh_deploy.ops import MOH_MATMUL_NBITS, OPS, OpSpec, is_moh_op
from moh_deploy.ops.nbits_product import CONTRIB_DOMAIN
from moh_deploy.package.graph_nodes import CONDITION_PREFIX, all_nodes

# Write products with weights of few bits as standard operators, which show each of the numbers.

# Attributes of com.microsoft's MatMulNBits, as MoHMatMulNBits calls them.
_NAMES = {"K": "in_features", "N": "out_features"}


def unpack_weights(graph: onnx.GraphProto) -> dict[str, int]:
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
        spec = _spec_of(node)
        if spec is None or spec.weight is None:
            nodes.append(node)
            continue
        given = dict(zip([i.name for i in spec.inputs], node.input, strict=False))
        attributes = {_NAMES.get(found.name, found.name): found.i for found in node.attribute}
        if f"{given['W']}.digits" not in largest:
            steps, most = spec.weight.unpack(attributes)
            nodes += nodes_of(steps, given["W"], {part: given[part] for part in ("W", "scales")})
            largest[f"{given['W']}.digits"] = most
        nodes += _product(node, f"{given['W']}.matrix", given.get("bias", ""))
    del graph.node[:]
    graph.node.extend(nodes)
    return largest


def _spec_of(node: onnx.NodeProto) -> OpSpec | None:
    """Return the op of few bits that a node is."""
    if (node.domain, node.op_type) == (CONTRIB_DOMAIN, "MatMulNBits"):
        return MOH_MATMUL_NBITS  # their inputs are the same
    has_few = is_moh_op(node.domain, node.op_type) and OPS[node.op_type].weight is not None
    return OPS[node.op_type] if has_few else None


def _at_its_place(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node; of an `If` between two ways to run a projection, of that."""
    copied, outputs = onnx.NodeProto(), list(node.output)
    copied.CopyFrom(node)
    if node.op_type == "If" and node.input[0].startswith(CONDITION_PREFIX):
        (inner,) = next(
            attribute.g.node for attribute in node.attribute if attribute.name == "else_branch"
        )
        if _spec_of(inner) is not None:
            copied.CopyFrom(inner)
            copied.output[:] = outputs
    return copied


def _product(node: onnx.NodeProto, weight: str, bias: str) -> Iterator[onnx.NodeProto]:
    result = node.output[0]
    product = f"{result}.product" if bias else result
    yield helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name)
    if bias:
        yield helper.make_node("Add", [product, bias], [result], name=f"{node.name}.Add")


def has_integer_products(graph: onnx.GraphProto) -> bool:
    """Tell whether weights or operands of the graph are in few bits."""
    integer = ("MatMulInteger", "QuantizeLinear")
    return any(_spec_of(node) or node.op_type in integer for node in all_nodes(graph))


def add_quantization_noise(graph: onnx.GraphProto) -> bool:
    """Let operands of integer products move by up to ROUNDING_STEP steps of their scales, and round
    them again: a weight wherever it is stored, an activation wherever it is rounded.

    The variant has inputs more: see `weight_noise`.

    Args:
        graph: Changed in place.
    """
    # The noisy operand takes the name, so that its readers need no change.
    digits = unpack_weights(graph)
    weights = {initializer.name: initializer for initializer in graph.initializer}
    operands = {"MatMulInteger": 2, "DequantizeLinear": 1}
    read = {name for node in graph.node for name in node.input[: operands.get(node.op_type, 0)]}
    nodes: list[onnx.NodeProto] = []
    for name in sorted(read & set(weights)):
        nodes += _noise(name, weights[name].data_type, len(nodes))
        weights[name].name = _exact(name)
    # Copies, since clearing the field takes the originals along.
    for node in [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]:
        nodes.append(node)
        # DynamicQuantizeLinear: what it rounds, its scale, its zero point. QuantizeLinear: the
        # first alone, of the dtype of its zero point.
        if node.op_type in ("DynamicQuantizeLinear", "QuantizeLinear"):
            is_dynamic = node.op_type == "DynamicQuantizeLinear"
            dtype = TensorProto.UINT8 if is_dynamic else weights[node.input[2]].data_type
            name, node.output[0] = node.output[0], _exact(node.output[0])
            nodes += _noise(name, dtype, len(nodes))
        elif node.output and node.output[0] in digits:
            name, node.output[0] = node.output[0], _exact(node.output[0])
            nodes += _noise(name, TensorProto.UINT8, len(nodes), largest=digits[name])
    del graph.node[:]
    graph.node.extend(nodes)
    add_noise_inputs(graph)
    return True


def _noise(
    name: str, dtype: int, seed: int, *, largest: int | None = None
) -> Iterator[onnx.NodeProto]:
    """round(operand + step * uniform(-1, 1)), within what its dtype holds, up to `largest`."""
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(dtype))
    steps = [
        # A place of its own in the drawn row for each operand; the sizes of activations are known
        # when they are there.
        f"start = Constant <value_ints = [{seed * 7919 % DRAWN_SIZE}]> ()",
        f"one = Constant <value_ints = [1]> () size = Constant <value_ints = [{DRAWN_SIZE}]> ()",
        "shape = Shape (exact) count = ReduceProd <keepdims = 1> (shape)",
        "stop = Add (start, count) rows_before = Div (stop, size)",
        "rows = Add (rows_before, one) times = Concat <axis = 0> (one, rows)",
        "enough = Tile (drawn, times) flat = Slice (enough, start, stop, one)",
        "draw = Reshape (flat, shape) move = Mul (draw, step)",
        f"wide = Cast <to = {TensorProto.FLOAT}> (exact) moved = Add (wide, move)",
        f"whole = Round (moved) least = Constant <value_float = {float(limits.min)}> ()",
        f"most = Constant <value_float = {float(largest or limits.max)}> ()",
        f"limited = Clip (whole, least, most) result = Cast <to = {dtype}> (limited)",
    ]
    return nodes_of(steps, name, {"result": name})


def _exact(name: str) -> str:
    return f"{name}.exact"
