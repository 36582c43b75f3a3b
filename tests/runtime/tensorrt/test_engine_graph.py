"""What an engine is made from: choices, and what is compared with the network."""

from dataclasses import replace
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import (
    CacheBuffer,
    CachesInPlace,
    LayerInfo,
    OnnxPackage,
    RouterTypes,
    SizeRange,
    TensorInfo,
    Tuning,
)
from moh_deploy.runtime.tensorrt import engine_graph
from moh_deploy.runtime.tensorrt.engine_graph import (
    EngineGraph,
    check_network,
    engine_choices,
    engine_layers,
    fix_dimension,
    read_graph,
)
from moh_deploy.runtime.tensorrt.messages import BuildAnswer
from moh_deploy.runtime.tensorrt.profiles import (
    Span,
    fixed_places,
    make_profiles,
    opt_sizes,
    profile_text,
    shapes,
)
from tests.graph.models import model, node, value
from tests.handmade_package import LAYER, MANIFEST, WIDTH
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
    assert [(layer.moh_impl, layer.router_impl) for layer in layers] == [
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


LIMITED = replace(MANIFEST, dim_ranges={"seq": (2, 10)})
STATIC = replace(MANIFEST, dims={})
CACHED = replace(
    MANIFEST,
    dims={"batch": 2, "seq": 3, "total": 8, "buffer": 11},
    caches=CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq"),
)


def test_a_profile_names_dimensions_and_leaves_the_others_as_usual():
    (profile,) = make_profiles(["batch=1..8..32"], MANIFEST)
    assert profile == {"batch": Span(1, 8, 32), "seq": Span(1, 3, 12)}
    assert opt_sizes(profile) == {"batch": 8, "seq": 3}


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("batch=8", Span(8, 8, 8)),
        ("batch:8", Span(8, 8, 8)),
        ("batch=1..32", Span(1, 32, 32)),
        (" batch = 1..8..32 ", Span(1, 8, 32)),
    ],
)
def test_other_ways_of_writing(text: str, span: Span):
    (profile,) = make_profiles([text], MANIFEST)
    assert profile["batch"] == span


def test_each_text_is_a_profile():
    first, second = make_profiles(["batch=1,seq=2..3", "batch=2..4"], MANIFEST)
    assert profile_text(first) == "batch=1,seq=2..3..3"
    assert profile_text(second) == "batch=2..4..4,seq=1..3..12"


def test_the_usual_profile_keeps_to_what_the_trace_is_good_for():
    assert make_profiles([], LIMITED) == ({"batch": Span(1, 2, 8), "seq": Span(2, 3, 10)},)


def test_a_static_model_has_none():
    assert make_profiles([], STATIC) == ()
    with pytest.raises(ConfigError, match="'batch=1', but the package has no dynamic dimension"):
        make_profiles(["batch=1"], STATIC)


def test_shapes_follow_from_expressions():
    inputs = (
        TensorInfo("x", "float32", ("batch", "seq", WIDTH)),
        TensorInfo("past", "float32", ("batch", "2*seq+1")),
    )
    assert shapes(inputs, {"batch": Span(1, 2, 4), "seq": Span(3, 5, 7)}) == {
        "x": ((1, 3, WIDTH), (2, 5, WIDTH), (4, 7, WIDTH)),
        "past": ((1, 7), (2, 11), (4, 15)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "'batch' is of another form, expected NAME=MIN..OPT..MAX"),
        ("batch=1..2..3..4", "of another form"),
        ("batch=-1", "of another form"),
        ("batsh=1", "no dynamic dimension 'batsh', only batch, seq"),
        ("batch=1,batch=2", "has 'batch' twice"),
        ("batch=4..2..8", "batch=4..2..8 does not rise"),
        ("seq=1..2", "seq is 1..2..2, the package takes 2 to 10"),
        ("seq=2..11", "seq is 2..11..11, the package takes 2 to 10"),
        ("batch=2..1073741825", "the package takes 0 to 1073741824"),
    ],
)
def test_wrong_profiles_are_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        make_profiles([text], LIMITED)


def test_caches_in_place_have_one_number_of_places():
    assert fixed_places(make_profiles(["buffer=64", "batch=8,buffer=64"], CACHED), CACHED) == 64
    assert fixed_places(make_profiles([], MANIFEST), MANIFEST) is None


def test_graph_has_as_many_places_as_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_graph, "fixed_places", lambda profiles, manifest: 5)
    monkeypatch.setattr(engine_graph, "BUFFER", "seq")
    (x, *_) = _graph(tmp_path).model.graph.inputs
    assert 5 in x.shape


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "buffer=1..11..44: TensorRT writes into caches of one fixed number of places"),
        (["buffer=64", "buffer=32"], "buffer=64, 32: TensorRT writes"),
        (["buffer=16"], "up to 32 for 'total', and caches of 16 places"),
    ],
)
def test_places_that_are_open_or_too_few_are_refused(texts: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        fixed_places(make_profiles(texts, CACHED), CACHED)


def test_every_value_gets_the_size_and_other_dimensions_stay():
    x, y, z = value("x", ["b", "room", 4]), value("y", ["b", "room", None]), value("z", ["b", 4])
    made = model([x], [y], [node("Relu", [x], y), node("Relu", [x], z)])
    fix_dimension(made, "room", 7)
    sizes = [[d if isinstance(d, int) else d.value for d in found.shape] for found in (x, y, z)]
    assert sizes == [["b", 7, 4], ["b", 7, None], ["b", 4]]
