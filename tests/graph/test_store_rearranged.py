from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.plain_products import store_rearranged

PACKED = np.arange(24, dtype=np.float32).reshape(6, 4)


def model() -> ir.Model:
    """Two products read parts of one packed weight, turned; a third reads what is computed."""
    nodes = [
        helper.make_node("Slice", ["packed", "first", "middle", "axis"], ["half"]),
        helper.make_node("Transpose", ["half"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["a"]),
        helper.make_node("MatMul", ["x", "turned"], ["b"]),
        helper.make_node("Transpose", ["x"], ["x_turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "x_turned"], ["c"]),
        helper.make_node("Mul", ["half", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["scaled_turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "scaled_turned"], ["d"]),
    ]
    weights = [
        numpy_helper.from_array(PACKED, "packed"),
        numpy_helper.from_array(np.float32(2.0), "scale"),
        *(
            numpy_helper.from_array(np.array([number]), name)
            for name, number in (("first", 0), ("middle", 3), ("axis", 0))
        ),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "abcd"]
    graph = helper.make_graph(nodes, "weights", given, results, weights)
    opset = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset))


def run(changed: ir.Model) -> list[np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    return ReferenceEvaluator(ir.to_proto(changed)).run(None, {"x": x})


def test_products_read_what_is_stored_and_compute_the_same():
    changed = model()
    before = run(changed)
    assert store_rearranged(changed, ("MatMul",))
    products = {node.outputs[0].name: node for node in changed.graph if node.op_type == "MatMul"}
    weight = products["a"].inputs[1]
    assert weight is products["b"].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), PACKED[:3].T)
    assert "turned" not in {node.outputs[0].name for node in changed.graph}
    for got, expected in zip(run(changed), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_what_is_computed_stays():
    changed = model()
    store_rearranged(changed, ("MatMul",))
    products = {node.outputs[0].name: node for node in changed.graph if node.op_type == "MatMul"}
    for name in "cd":
        weight = products[name].inputs[1]
        assert weight is not None
        assert weight.producer() is not None
    assert not store_rearranged(changed, ("MatMul",))


def test_projections_read_what_is_stored_too():
    changed = model()
    product = next(node for node in changed.graph if node.outputs[0].name == "a")
    product.domain, product.op_type = "moh", "MoHQueryProjection"
    assert store_rearranged(changed, ("MoHQueryProjection",))
    weight = product.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), PACKED[:3].T)
