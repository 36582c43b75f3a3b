from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.graph.plugin_nodes import nodes_with_plugins
from moh_deploy.graph.sequences import lower_to_tensorrt
from moh_deploy.ops.op_names import DENSE_DOMAIN
from moh_deploy.package import OnnxPackage, at_sizes, with_choices
from tests.graph.models import attention, model, value
from tests.ops.case_models import case_model
from tests.ops.cases import named_case
from tests.projected_package import ATTENTION, write_projected
from tests.two_layers import FIRST, ROUTER, SECOND, write_two_layers


def _lowered(model: ir.Model, *names: str, **shares: float) -> dict[str, ir.Node]:
    """Return what is left of our nodes, by name."""
    lower_to_tensorrt(model, plugin_nodes=names, fused_nodes=(), open_shares=shares)
    assert not model.functions
    return {n.name or "": n for n in model.graph if n.domain.startswith("moh")}


@pytest.fixture
def two_layers(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def test_plugins_stay_and_no_function_does(two_layers: OnnxPackage):
    model = ir.load(two_layers.model_path)
    names = [node.name or "" for node in nodes_with_plugins(model)]
    assert sorted(names) == sorted([FIRST, SECOND, ROUTER])
    left = _lowered(model, *names)
    assert set(left) == set(names)
    assert {node.overload for node in left.values()} == {""}
    # A node beside a plugin of its kind becomes operators, and projections have none.
    left = _lowered(ir.load(two_layers.model_path), FIRST, ROUTER)
    assert set(left) == {FIRST, ROUTER}
    model = ir.load(write_projected(two_layers.root / "projected").model_path)
    assert [node.name for node in nodes_with_plugins(model)] == [ATTENTION]


def test_a_dense_layer_becomes_operators_although_its_node_is_called_as_a_plugin_is(
    two_layers: OnnxPackage,
):
    model = ir.load(two_layers.model_path)
    layers = with_choices(two_layers.manifest.layers, {"all": "sparse", "blocks.1.attn": "dense"})
    choose_layers(model, layers)
    assert any(node.domain == DENSE_DOMAIN for node in model.graph)
    names = [node.name or "" for node in nodes_with_plugins(model)]
    assert sorted(names) == sorted([FIRST, ROUTER])
    assert set(_lowered(model, *names)) == {FIRST, ROUTER}


def test_choices_by_size_become_one(two_layers: OnnxPackage):
    layers = with_choices(
        two_layers.manifest.layers,
        {"all": "sparse", "all[batch<=4]": "dense"},
        dims=["batch", "seq"],
    )
    model = ir.load(two_layers.model_path)
    choose_layers(model, layers)
    assert any(node.op_type == "If" for node in model.graph)
    choose_layers(model, at_sizes(layers, {"batch": 8, "seq": 3}))
    left = _lowered(model, *(node.name or "" for node in nodes_with_plugins(model)))
    assert FIRST in left
    assert not any(node.op_type in ("If", "LessOrEqual") for node in model.graph)


def test_the_share_of_open_gates_is_told_to_attention_only(two_layers: OnnxPackage):
    model = ir.load(two_layers.model_path)
    left = _lowered(model, FIRST, SECOND, ROUTER, **{FIRST: 0.625, ROUTER: 0.5})
    assert left[FIRST].attributes["open_share"].as_float() == 0.625
    assert left[FIRST].attributes["present_inputs"].as_int() == 0
    assert "portable" not in left[FIRST].attributes
    assert "open_share" not in left[SECOND].attributes
    assert "open_share" not in left[ROUTER].attributes
    model = ir.load(two_layers.model_path)  # for other GPUs as well
    names = [node.name or "" for node in nodes_with_plugins(model)]
    lower_to_tensorrt(model, plugin_nodes=names, fused_nodes=(), open_shares={}, is_portable=True)
    assert {n.name for n in model.graph if "portable" in n.attributes} == {FIRST, SECOND}


def _two_attentions() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return a model of two attentions, `first` and `second`, and inputs; `second` has a mask."""
    x, gates = value("x", [2, 3, 8]), value("gates", [2, 3, 4])
    mask = value("mask", [3, 3], ir.DataType.BOOL)
    y, z = value("y", [2, 3, 8]), value("z", [2, 3, 8])
    nodes = [attention(x, x, gates, y), attention(y, y, gates, z, mask)]
    nodes[0].name, nodes[1].name = "first", "second"
    content = model([x, gates, mask], [z], nodes)
    add_function_bodies(content, opset=20)
    assert [node.domain for node in nodes] == ["moh", "moh.2"]
    rng = np.random.default_rng(3)
    feed = {
        "x": rng.standard_normal((2, 3, 8), np.float32),
        "gates": rng.random((2, 3, 4), np.float32),
        "mask": np.tri(3, dtype=bool),
    }
    return content, feed


def test_each_body_becomes_its_own_operators():
    """With and without a mask: the parser knows functions by name only."""
    content, feed = _two_attentions()
    expected = _run(content, feed)
    assert _lowered(content) == {}
    np.testing.assert_allclose(_run(content, feed), expected, atol=1e-6)


def test_attentions_may_be_fused_beside_others_that_are_not():
    content, feed = _two_attentions()
    expected = _run(content, feed)
    names = lower_to_tensorrt(content, plugin_nodes=(), fused_nodes=["second"], open_shares={})
    assert [node.name for node in content.graph if node.op_type == "Attention"] == [names["second"]]
    assert content.opset_imports[""] == 23
    np.testing.assert_allclose(_run(content, feed), expected, atol=1e-6)


def test_a_plugin_beside_a_fused_attention_stays_one_and_gets_no_bool():
    content, _ = _two_attentions()
    names = lower_to_tensorrt(
        content, plugin_nodes=["second"], fused_nodes=["first"], open_shares={}
    )
    assert list(names) == ["first"]
    (plugin,) = [node for node in content.graph if node.domain.startswith("moh")]
    assert plugin.name == "second"
    assert plugin.inputs[4].dtype == ir.DataType.FLOAT


def _run(content: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(content).SerializeToString())
    return session.run(None, feed)[0]


def test_gaps_between_inputs_are_closed():
    content = ir.from_proto(case_model(named_case("MoHAggregatedAttention", "window_bias_only")))
    content.graph[0].name = "stage.0.attn"
    node = _lowered(content, "stage.0.attn")["stage.0.attn"]
    assert node.attributes["present_inputs"].as_int() == 0b1_0011_1111
