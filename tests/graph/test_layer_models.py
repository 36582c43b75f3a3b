from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxruntime as ort
import pytest
from onnx import parser

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.layer_models import (
    empty_model,
    fed_names,
    fed_values,
    layer_model,
    node_model,
)
from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.perf.tune.layers import LayerBench, at_sizes_of
from moh_deploy.runtime.base import Variant
from tests.graph.models import attention, model, value
from tests.handmade_package import ATTRIBUTES, BODY, LAYER, vectors, write_package
from tests.kernel_library import required_library
from tests.two_layers import LAYERS, two_layers, write_two_layers


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_layer_by_itself_computes_what_it_does_in_the_model(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    model, (recorded,) = ir.load(package.model_path), package.vectors
    assert fed_names(model, LAYERS[0]) == ("x", "gates_0")
    feeds = {"x": recorded.inputs["x"], "gates_0": recorded.gates[0]}
    for choice in ("sparse", "dense"):
        choose_layers(model, [replace(LAYERS[0], choice=choice)])
        alone = layer_model(model, LAYERS[0], [feeds])
        assert [node.domain for node in alone.graph.node] == [
            "moh" if choice == "sparse" else "moh.dense"
        ]
        (heads,) = run(alone, feeds)
        np.testing.assert_allclose(heads, vectors().outputs["y"], atol=1e-6)


def test_sizes_that_differ_among_inputs_are_open(tmp_path: Path):
    package = write_package(tmp_path / "package")
    model = ir.load(package.model_path)
    sets = [vectors(batch=2, seq=3), vectors(batch=2, seq=1)]
    feeds = [{"x": item.inputs["x"], "gates_0": item.gates[0]} for item in sets]
    alone = layer_model(model, LAYER, feeds)
    shape = alone.graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [2, 0, 8]
    for fed, item in zip(feeds, sets, strict=True):
        np.testing.assert_allclose(run(alone, fed)[0], item.outputs["y"], atol=1e-6)


@pytest.mark.parametrize("external", [False, True])
def test_weights_come_along_with_what_makes_them(tmp_path: Path, external: bool):
    """Keys are a constant, made by a Transpose of an initializer."""
    weight = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    whole = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "moh" : 1]>
        g (float[b, s, 8] x, float[b, s, 4] gates) => (float[b, s, 8] y) {
            keys = Transpose <perm = [0, 2, 1]> (weight)
            y = moh.MoHAttention (x, keys, keys, gates)
        }"""
    )
    node = make_node("MoHAttention", ["x", "keys", "keys", "gates"], ["y"], **ATTRIBUTES)
    node.name = LAYER.node or ""
    whole.graph.node[1].CopyFrom(node)
    whole.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    whole.functions.append(BODY)
    path = tmp_path / "model.onnx"
    onnx.save(whole, path, save_as_external_data=external, size_threshold=0)
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((2, 5, 8)).astype(np.float32),
        "gates": rng.standard_normal((2, 5, 4)).astype(np.float32),
    }
    model = ir.load(path)
    assert fed_names(model, LAYER) == ("x", "gates")
    expected = run(onnx.load(path), feeds)
    np.testing.assert_array_equal(run(layer_model(model, LAYER, [feeds]), feeds), expected)


def test_layer_behind_many_nodes_is_cut_out(tmp_path: Path):
    model = ir.load(write_package(tmp_path / "package").model_path)
    (node,) = (item for item in model.graph if item.name == LAYER.node)
    value = node.inputs[0]
    for _ in range(1000):
        identity = ir.node("Identity", [value])
        model.graph.insert_before(node, identity)
        value = identity.outputs[0]
    value.name = "far"
    node.replace_input_with(0, value)
    assert fed_names(model, LAYER) == ("far", "x", "gates_0")


def test_every_choice_of_every_layer_is_timed_on_what_the_model_feeds_it(tmp_path: Path):
    required_library()
    package = write_two_layers(tmp_path / "package")
    seen: list[tuple[str, list[str]]] = []

    def measure(what: str, candidates: dict[str, object]) -> dict[str, tuple[float, ...]]:
        seen.append((what, list(candidates)))
        return dict.fromkeys(candidates, (1.0,))

    sets = [vectors().inputs, vectors(batch=1, seq=1).inputs]
    times = LayerBench(package, sets, Variant(threads=1), tmp_path).measure(measure)
    candidates = ["nothing", "dense", "sparse"]
    assert seen == [(layer.path, candidates) for layer in LAYERS for _ in sets]
    assert [list(item) for layer in times for item in layer.samples] == [["dense", "sparse"]] * 4
    # Two sequences of three tokens take longer than one of one.
    for layer in times:
        large, small = layer.predicted_ms
        assert all(large[choice] > small[choice] for choice in ("dense", "sparse"))


def test_what_a_session_costs_that_does_nothing_is_in_no_time(tmp_path: Path):
    required_library()
    package = write_package(tmp_path / "package")

    def measure(what: str, candidates: dict[str, object]) -> dict[str, tuple[float, ...]]:
        return {"nothing": (4.0, 3.0, 50.0), "dense": (9.0, 9.0, 9.0), "sparse": (4.5, 4.0, 6.0)}

    (times,) = LayerBench(package, [vectors().inputs], Variant(threads=1), tmp_path).measure(
        measure
    )
    # The median of nothing is 4; no time vanishes.
    assert times.samples == ({"dense": (5.0, 5.0, 5.0), "sparse": (0.5, 0.04, 2.0)},)


def test_layer_has_the_sizes_and_gates_of_the_run(tmp_path: Path):
    package = write_package(tmp_path / "package")
    run = vectors(batch=5, seq=7)
    gates = np.zeros_like(run.gates[0])
    gates[..., 0] = 1.0
    sized = at_sizes_of(ir.load(package.model_path), LAYER, {**run.inputs, "gates_0": gates})
    assert (sized.batch, sized.seq_len, sized.kv_len, sized.active_share) == (5, 7, 7, 0.25)
    assert at_sizes_of(ir.load(package.model_path), LAYER, {}) == LAYER


def test_what_an_operator_of_ours_makes_of_constants_is_fed():
    """Layers of a model without inputs: the first reads weights alone, the second what it makes."""
    content, x = two_layers(), vectors().inputs["x"]
    content.graph.initializer.append(onnx.numpy_helper.from_array(x, "x"))
    del content.graph.input[:]
    model = ir.from_proto(content)
    assert fed_names(model, LAYERS[0]) == ()
    (heads,) = run(layer_model(model, LAYERS[0], [{}]), {})
    np.testing.assert_allclose(heads, vectors().outputs["y"], atol=1e-6)
    assert fed_names(model, LAYERS[1]) == ("heads", "gates_1")
    feeds = {"heads": heads, "gates_1": vectors().gates[0]}
    assert run(layer_model(model, LAYERS[1], [feeds]), feeds)[0].shape == heads.shape


def test_layer_of_constants_is_compared_with_a_session_that_takes_nothing():
    (result,) = run(empty_model([{}]), {})
    assert result.size == 1


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
    assert [item.name for item in fed_values(node)] == ["x", "keys", "gates"]


def test_it_computes_what_the_node_does():
    content, node = _model()
    small = node_model(content, node)
    assert [item.op_type for item in small.graph] == ["MoHAttention"]
    rng = np.random.default_rng(4)
    x, gates = rng.standard_normal((2, 3, 8), np.float32), rng.random((2, 3, 4), np.float32)
    found = [
        onnxruntime.InferenceSession(ir.to_proto(item).SerializeToString()).run(None, feed)[0]
        for item, feed in (
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
