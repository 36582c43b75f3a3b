from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moh_deploy.graph.add_function_bodies import add_function_bodies
from moh_deploy.graph.plugin_nodes import float_masks
from tests.graph.models import attention, model, value


def _model(
    mask_type: ir.DataType = ir.DataType.BOOL, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Model:
    """y = second(first(x)), both with the same mask."""
    x, gates = value("x", [2, 3, 8], dtype), value("gates", [2, 3, 4], dtype)
    mask = value("mask", [3, 3], mask_type)
    y, z = value("y", [2, 3, 8], dtype), value("z", [2, 3, 8], dtype)
    nodes = [attention(x, x, gates, y, mask), attention(y, y, gates, z, mask)]
    nodes[0].name, nodes[1].name = "first", "second"
    return model([x, gates, mask], [z], nodes)


def _masks(content: ir.Model) -> dict[str, ir.Value]:
    return {n.name: n.inputs[4] for n in content.graph if n.op_type == "MoHAttention"}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_mask_is_turned_once_into_the_dtype_of_the_scores(dtype: ir.DataType):
    content = _model(dtype=dtype)
    assert float_masks(content, ["first", "second"])
    first, second = _masks(content).values()
    assert first is second
    assert (first.dtype, list(first.shape)) == (dtype, [3, 3])
    assert [node.op_type for node in content.graph] == ["Where", "MoHAttention", "MoHAttention"]


def test_only_nodes_that_are_named_are_changed():
    content = _model()
    assert float_masks(content, ["second"])
    masks = _masks(content)
    assert masks["first"].dtype == ir.DataType.BOOL
    assert masks["second"].dtype == ir.DataType.FLOAT


def test_a_float_mask_stays_as_it_is():
    content = _model(ir.DataType.FLOAT)
    before = ir.to_proto(content).SerializeToString()
    assert not float_masks(content, ["first", "second"])
    assert ir.to_proto(content).SerializeToString() == before


def test_the_same_keys_are_hidden():
    """With a query that sees none."""
    rng = np.random.default_rng(2)
    feed = {
        "x": rng.standard_normal((2, 3, 8), np.float32),
        "gates": rng.random((2, 3, 4), np.float32),
        "mask": np.array([[True, False, True], [False, False, False], [False, True, False]]),
    }
    found = []
    for change in (False, True):
        content = _model()
        if change:
            float_masks(content, ["first", "second"])
        add_function_bodies(content, opset=20)
        session = onnxruntime.InferenceSession(ir.to_proto(content).SerializeToString())
        found.append(session.run(None, feed)[0])
    np.testing.assert_array_equal(*found)
