import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.graph.load_model import add_function_bodies
from tests.graph.models import attention, model, node, value


def two_layers(*, masked: tuple[bool, bool] = (False, False)) -> ir.Model:
    x, gates = value("x", ["b", "s", 8]), value("gates", ["b", "s", 4])
    keep = value("keep", ["s", "s"], ir.DataType.BOOL)
    h, y = value("h", ["b", "s", 8]), value("y", ["b", "s", 8])
    nodes = [
        attention(x, x, gates, h, keep if masked[0] else None),
        attention(h, h, gates, y, keep if masked[1] else None),
    ]
    return model([x, gates, *([keep] if any(masked) else [])], [y], nodes)


def names(built: ir.Model) -> list[tuple[str, str, str]]:
    return list(built.functions)


def run(built: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(built)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_nodes_of_one_kind_share_one_body():
    built = two_layers()
    add_function_bodies(built, opset=20)
    assert names(built) == [("moh", "MoHAttention", "")]
    assert [n.domain for n in built.graph] == ["moh", "moh"]


def test_nodes_that_need_other_bodies_are_of_other_domains():
    built = two_layers(masked=(True, False))
    add_function_bodies(built, opset=20)
    assert [n.domain for n in built.graph] == ["moh", "moh.2"]
    assert names(built) == [("moh", "MoHAttention", ""), ("moh.2", "MoHAttention", "")]
    assert built.opset_imports == {"": 20, "moh": 1, "moh.2": 1}
    # Many readers know no overloads.
    assert {n.overload for n in built.graph} == {""}


@pytest.mark.parametrize("masked", [(False, False), (True, True), (True, False)])
def test_model_with_bodies_runs_without_kernels(masked: tuple[bool, bool]):
    built = two_layers(masked=masked)
    add_function_bodies(built, opset=20)
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((2, 5, 8)).astype(np.float32),
        "gates": rng.uniform(0, 2, (2, 5, 4)).astype(np.float32),
    }
    past = np.tri(5, dtype=bool)
    if any(masked):
        inputs["keep"] = past
    expected = inputs["x"]
    for is_masked in masked:
        expected = attended(expected, inputs["gates"], past if is_masked else past | True)
    np.testing.assert_allclose(run(built, **inputs), expected, atol=1e-5)


def attended(x: np.ndarray, gates: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return self-attention of four heads of two, each times its gate: [b, s, 8]."""
    heads = x.reshape(*x.shape[:2], 4, 2).transpose(0, 2, 1, 3)  # [b, h, s, 2]
    scores = np.where(keep, 0.5 * heads @ heads.swapaxes(-1, -2), -np.inf)  # [b, h, s, s]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    weighted = shares / shares.sum(-1, keepdims=True) @ heads
    return (weighted.transpose(0, 2, 1, 3) * gates[..., None]).reshape(x.shape)


def test_model_without_moh_nodes_has_no_bodies():
    x, y = value("x", ["b"]), value("y", ["b"])
    built = model([x], [y], [node("Relu", [x], y)])
    add_function_bodies(built, opset=20)
    assert names(built) == []


def test_unknown_attribute_is_refused():
    built = two_layers()
    built.graph[0].attributes.add(ir.AttrInt64("heads", 4))
    with pytest.raises(ExportError, match="no attribute 'heads'"):
        add_function_bodies(built, opset=20)
