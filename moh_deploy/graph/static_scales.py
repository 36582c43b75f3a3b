"""Write products in int8 whose scales are stored: nothing is measured when the model runs.

Runtimes know such a product by its operands: QuantizeLinear and DequantizeLinear of what it reads,
DequantizeLinear of its weight. OpenVINO and ONNX Runtime multiply the integers.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from moh_deploy.graph.integer_policy import PRODUCTS
from moh_deploy.graph.load_model import store_array
from moh_deploy.graph.plain_products import products_of_gemms, store_rearranged
from moh_deploy.system.npz import Array

Range = tuple[float, float]
"""The least and the largest number of a value, 0 among them."""

_LEAST, _LARGEST = "moh.least.", "moh.largest."
# Where one side of a range is so many times as long as the other, uint8 with a zero point has steps
# that are 1.5 times finer than symmetric ones. Products take longer for it, which correct for it.
_LOPSIDED = 3


def read_by(model: ir.Model, products: Collection[str]) -> tuple[str, ...]:
    """Return the names of the values that products read besides their weights."""
    read = (node.inputs[0] for node in model.graph if node.name in products)
    return tuple(dict.fromkeys(value.name or "" for value in read if value is not None))


def return_ranges(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Let a model return the range of inner values besides: `ranges_of` reads them.

    Args:
        graph: Changed in place.
    """
    for name in names:
        for operator, start in (("ReduceMin", _LEAST), ("ReduceMax", _LARGEST)):
            result = f"{start}{name}"
            graph.node.append(helper.make_node(operator, [name], [result], result, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, []))


def ranges_of(results: Mapping[str, Array], names: Iterable[str]) -> dict[str, Range]:
    """Return the ranges among the results of a model that `return_ranges` changed."""
    return {
        name: (
            min(0.0, float(results[f"{_LEAST}{name}"])),
            max(0.0, float(results[f"{_LARGEST}{name}"])),
        )
        for name in names
    }


def quantize_static(
    model: ir.Model, products: Collection[str], ranges: Mapping[str, Range]
) -> None:
    """Bring products to int8, each column of a weight and each value that is read by a scale.

    Results stay in float32: OpenVINO 2026.4 is three times further off where they are rounded to
    symmetric steps as well.

    Args:
        model: A model in float32. It is changed in place.
        products: Names of the Gemm and MatMul nodes, whose weights are stored matrices.
        ranges: Of each value that they read.
    """
    if products_of_gemms(model, products):
        store_rearranged(model, PRODUCTS)  # weights that Gemms transposed
    rounded: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node.name in products]:
        x, weight = node.inputs[:2]
        assert x is not None
        assert weight is not None
        if x not in rounded:
            rounded[x] = _rounded(model.graph, x, ranges[x.name or ""])
        if weight not in rounded:
            rounded[weight] = _store_int8(model.graph, weight)
        node.replace_input_with(0, rounded[x])
        node.replace_input_with(1, rounded[weight])
    for value in rounded:
        if value.is_initializer() and not value.uses():
            del model.graph.initializers[value.name or ""]


def is_quantized(product: ir.Node) -> bool:
    """Tell whether `quantize_static` brought a product to int8."""
    weight = product.inputs[1]
    maker = None if weight is None else weight.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _rounded(graph: ir.Graph, x: ir.Value, limits: Range) -> ir.Value:
    """Return what a value is after rounding: DequantizeLinear(QuantizeLinear(x))."""
    least, largest = limits
    step: Array = _scale(np.asarray(max(-least, largest)))
    zero_point: Array = np.zeros((), np.int8)
    if _LOPSIDED * min(-least, largest) < max(-least, largest):
        step = _scale(np.asarray(largest - least), steps=255)
        zero_point = np.rint(-least / float(step)).astype(np.uint8)
    scale = store_array(graph, f"{x.name}.int8.scale", step)
    zero = store_array(graph, f"{x.name}.int8.zero", zero_point)
    to = ir.node("QuantizeLinear", [x, scale, zero], name=f"{x.name}.int8.QuantizeLinear")
    back = ir.node(
        "DequantizeLinear", [to.outputs[0], scale, zero], name=f"{x.name}.int8.DequantizeLinear"
    )
    to.outputs[0].name, back.outputs[0].name = f"{x.name}.int8", f"{x.name}.int8.rounded"
    maker = x.producer()
    if maker is None:
        graph.insert_before(graph[0], [to, back])
    else:
        graph.insert_after(maker, [to, back])
    return back.outputs[0]


def _store_int8(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """Store a weight [in, out] in int8, and return what it is after rounding."""
    assert weight.const_value is not None
    exact = weight.const_value.numpy()
    scales = _scale(np.abs(exact).max(axis=0, initial=0))  # [out]
    steps = np.rint(exact / scales).astype(np.int8)
    operands = [
        store_array(graph, f"{weight.name}.int8", steps),
        store_array(graph, f"{weight.name}.int8.scales", scales),
    ]
    node = ir.node(
        "DequantizeLinear", operands, {"axis": 1}, name=f"{weight.name}.int8.DequantizeLinear"
    )
    node.outputs[0].name = f"{weight.name}.int8.rounded"
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _scale(length: Array, *, steps: int = 127) -> Array:
    """Return the size of a step, float32; of what is all zeros, 1."""
    step = np.asarray(length, np.float32) / np.float32(steps)
    return np.where(step > 0, step, np.float32(1))
