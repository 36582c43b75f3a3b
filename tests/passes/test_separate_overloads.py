from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from moh_deploy.passes import add_function_bodies, separate_overloads
from tests.passes.models import attention, model, node, value


def two_convolutions() -> ir.Model:
    """Two MoHTokenConv, of which only the second has a gelu: their bodies differ."""
    x, y, z = (value(name, ["b", 12, 4]) for name in "xyz")
    weight = value("weight", [4, 1, 3, 3])
    common = {"channels": 4, "height": 3, "width": 4, "gated": 0}
    nodes = [
        node("MoHTokenConv", [x, weight], y, {**common, "activation": "none"}),
        node("MoHTokenConv", [y, weight], z, {**common, "activation": "gelu"}),
    ]
    made = model([x, weight], [z], nodes)
    add_function_bodies(made, opset=20)
    return made


def _run(built: ir.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 12, 4)), "weight": rng.standard_normal((4, 1, 3, 3))}
    session = ort.InferenceSession(
        ir.to_proto(built).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {k: v.astype(np.float32) for k, v in feeds.items()})[0]


def test_each_overload_gets_a_name_of_its_own():
    built = two_convolutions()
    assert len({key[2] for key in built.functions}) == 2
    before = _run(built)
    names = separate_overloads(built)
    assert len(names) == 2
    assert [node.op_type for node in built.graph] != [
        node.op_type for node in two_convolutions().graph
    ]
    assert sorted(node.op_type for node in built.graph) == list(names)
    assert sorted(built.functions) == [("moh", name, "") for name in names]
    np.testing.assert_array_equal(_run(built), before)
    onnx.checker.check_model(ir.to_proto(built))


def test_ops_with_a_plugin_keep_their_name():
    x, g = value("x", ["b", "s", 8]), value("g", ["b", "s", 4])
    mask = value("m", ["s", "s"], ir.DataType.BOOL)
    y, z = value("y", ["b", "s", 8]), value("z", ["b", "s", 8])
    built = model([x, g, mask], [z], [attention(x, x, g, y), attention(y, x, g, z, mask)])
    add_function_bodies(built, opset=20)
    before = ir.to_proto(built).SerializeToString()
    assert separate_overloads(built) == ()
    assert ir.to_proto(built).SerializeToString() == before


def test_without_overloads_nothing_changes():
    built = two_convolutions()
    separate_overloads(built)
    before = ir.to_proto(built).SerializeToString()
    assert separate_overloads(built) == ()
    assert ir.to_proto(built).SerializeToString() == before
