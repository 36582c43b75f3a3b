from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from moh_deploy.graph.add_function_bodies import add_function_bodies
from moh_deploy.graph.layer_models import fed_values, node_model
from tests.graph.models import attention, model, value


def _model() -> tuple[ir.Model, ir.Node]:
    """Return y = attention(x, -x, -x, gates), with a mask that is a constant, and its node."""
    x, gates, y = value("x", ["b", 3, 8]), value("gates", ["b", 3, 4]), value("y", ["b", 3, 8])
    keys = value("keys", ["b", 3, 8])
    mask = value("mask", [3, 3], ir.DataType.BOOL)
    mask.const_value = ir.Tensor(np.tri(3, dtype=bool), name="mask")
    node = attention(x, keys, gates, y, mask)
    node.name = "attention"
    negated = ir.node("Neg", [x], outputs=[keys])
    content = model([x, gates], [y], [negated, node])
    content.graph.register_initializer(mask)
    add_function_bodies(content, opset=20)
    return content, node


def test_what_is_no_constant_is_fed_once():
    _, node = _model()
    assert [one.name for one in fed_values(node)] == ["x", "keys", "gates"]


def test_it_computes_what_the_node_does():
    content, node = _model()
    small = node_model(content, node)
    assert [one.op_type for one in small.graph] == ["MoHAttention"]
    rng = np.random.default_rng(4)
    x, gates = rng.standard_normal((2, 3, 8), np.float32), rng.random((2, 3, 4), np.float32)
    found = [
        onnxruntime.InferenceSession(ir.to_proto(one).SerializeToString()).run(None, feed)[0]
        for one, feed in (
            (content, {"x": x, "gates": gates}),
            (small, {"x": x, "keys": -x, "gates": gates}),
        )
    ]
    np.testing.assert_array_equal(*found)


def test_the_model_stays_as_it_was():
    content, node = _model()
    before = ir.to_proto(content).SerializeToString()
    node_model(content, node)
    assert ir.to_proto(content).SerializeToString() == before
