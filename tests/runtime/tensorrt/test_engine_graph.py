"""What an engine is made from: choices, and what is compared with the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.package import LayerInfo, OnnxPackage, RouterTypes, SizeRange, Tuning
from moh_deploy.runtime.tensorrt.engine_graph import (
    EngineGraph,
    check_network,
    engine_choices,
    engine_layers,
    read_graph,
)
from moh_deploy.runtime.tensorrt.messages import BuildAnswer
from moh_deploy.runtime.tensorrt.profiles import make_profiles
from tests.handmade_package import LAYER, MANIFEST
from tests.two_layers import FIRST, ROUTER, SECOND, write_two_layers

GIVEN = Tuning("given", "this one")
MEASURED = Tuning("measured", "a CPU")
UP_TO_8 = (SizeRange("batch", 8, "dense"),)


def _choice(layer: LayerInfo, tuning: Tuning | None, *profiles: str) -> str | None:
    manifest = replace(MANIFEST, layers=(layer,), tuning=tuning)
    (chosen,) = engine_choices(manifest, make_profiles(profiles, manifest))
    assert chosen.ranges == ()
    return chosen.choice


@pytest.mark.parametrize("tuning", [None, MEASURED])
def test_what_a_cpu_prefers_says_nothing_of_a_gpu(tuning: Tuning | None):
    assert _choice(replace(LAYER, choice="dense"), tuning) == "sparse"


def test_what_somebody_chose_counts():
    assert _choice(replace(LAYER, choice="dense"), GIVEN) == "dense"
    assert _choice(replace(LAYER, choice="projected"), GIVEN) == "sparse"


def test_of_choices_by_size_those_at_the_usual_sizes_of_the_profiles_count():
    layer = replace(LAYER, choice="sparse", ranges=UP_TO_8)
    assert _choice(layer, GIVEN, "batch=1..8..64") == "dense"
    assert _choice(layer, GIVEN, "batch=1..9..64") == "sparse"
    assert _choice(layer, GIVEN, "batch=1", "batch=64") == "sparse"  # kernels can be dense, too


def test_a_layer_that_was_not_replaced_has_no_choice():
    layer = replace(LAYER, node=None, replaced=False)
    assert _choice(layer, GIVEN) is None


def _graph(tmp_path: Path) -> EngineGraph:
    return _graph_of(write_two_layers(tmp_path / "package"))


def _graph_of(package: OnnxPackage) -> EngineGraph:
    """Every layer runs by kernels."""
    return read_graph(package, make_profiles([], package.manifest), no_plugins=None).lowered({})


def test_routers_decide_in_float32_in_lower_precision(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    graph = _graph_of(OnnxPackage.open(tmp_path / "half"))
    assert graph.read.layers[1].router_types == RouterTypes("float16", "float32", "float32")
    assert graph.read.types["gates_1"] == "float32"


def _answer(graph: EngineGraph, **types: str) -> BuildAnswer:
    return BuildAnswer(plugins=tuple(graph.plugin_nodes), types=graph.read.types | types)


def test_a_network_of_all_the_same_passes(tmp_path: Path):
    graph = _graph(tmp_path)
    check_network(graph, _answer(graph), title="TensorRT")
    layers = engine_layers(graph, plugins=graph.plugin_nodes, attentions=())
    assert [(one.moh_impl, one.router_impl) for one in layers] == [
        ("kernel", "operators"),
        ("kernel", "kernel"),
    ]


def test_gates_of_another_dtype_are_found(tmp_path: Path):
    graph = _graph(tmp_path)
    with pytest.raises(
        BackendError, match="TensorRT made 'gates_1' float16; the graph says float32"
    ):
        check_network(graph, _answer(graph, gates_1="float16"), title="TensorRT")


def test_a_function_in_place_of_a_plugin_is_found(tmp_path: Path):
    graph = _graph(tmp_path)
    answer = replace(_answer(graph), plugins=(FIRST, SECOND))
    with pytest.raises(BackendError, match=f"TensorRT made no plugin of {ROUTER}"):
        check_network(graph, answer, title="TensorRT")


def test_lost_gates_are_found(tmp_path: Path):
    graph = _graph(tmp_path)
    answer = _answer(graph)
    del answer.types["gates_0"]
    with pytest.raises(BackendError, match=r"no value for the gates of blocks\.0\.attn\."):
        check_network(graph, answer, title="TensorRT")


def test_indices_may_be_of_fewer_bits(tmp_path: Path):
    graph = _graph(tmp_path)
    graph.read.types["indices"] = "int64"
    check_network(graph, _answer(graph, indices="int32"), title="TensorRT")


def test_names_of_the_plugins(tmp_path: Path):
    assert set(_graph(tmp_path).plugin_nodes) == {FIRST, SECOND, ROUTER}
