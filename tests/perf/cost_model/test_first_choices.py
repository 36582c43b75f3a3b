from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo, choice_text, current_choice
from moh_deploy.perf.cost_model import first_choices as module
from moh_deploy.perf.cost_model.first_choices import SWITCH_MS, by_size, dense_at, first_choices
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import Prediction
from moh_deploy.perf.tune.job import fastest_there
from tests.graph.models import attention, value
from tests.graph.models import model as model_of
from tests.projected_package import PROJECTED_LAYER
from tests.two_layers import FIRST, LAYERS, write_two_layers

DIMS = {"batch": 2, "seq": 4}


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return ir.load(write_two_layers(tmp_path / "package").model_path)


def test_every_layer_is_chosen_by_its_own_prediction(model: ir.Model, monkeypatch):
    def told(layer: LayerInfo, nodes: LayerNodes, _: Platform) -> Prediction:
        assert nodes.op == "MoHAttention"
        sparse = 0.5 if layer.path == "blocks.1.attn" else 2.0
        return Prediction({"dense": 1.0, "sparse": sparse}, {})

    monkeypatch.setattr(module, "predict", told)
    chosen = first_choices(model, LAYERS, platform=Platform("avx2"), dims=DIMS, dim_ranges={})
    assert [layer.choice for layer in chosen] == ["dense", "sparse"]
    assert [replace(layer, choice=None) for layer in chosen] == list(LAYERS)


def test_layer_of_unknown_sizes_runs_on_kernels(model: ir.Model):
    layers = [
        replace(LAYERS[0], seq_len=None),
        replace(LAYERS[1], seq_len=None, output_projection="o"),
        replace(LAYERS[0], node=None, replaced=False),
    ]
    chosen = first_choices(model, layers, platform=Platform(), dims=DIMS, dim_ranges={})
    assert [layer.choice for layer in chosen] == ["sparse", "projected", None]


def one_layer(query: list[str | int], key: list[str | int]) -> ir.Model:
    x, y = value("x", [*query, 8]), value("y", [*query, 8])
    node = attention(x, value("k", [*key, 8]), value("gates", [*query, 4]), y)
    node.name = FIRST
    return model_of([x, *node.inputs[1:2], *node.inputs[3:4]], [y], [node])


def chosen_by_size(
    monkeypatch: pytest.MonkeyPatch,
    ms: Callable[[LayerInfo], tuple[float, float]],
    *,
    built: ir.Model | None = None,
    layer: LayerInfo = LAYERS[0],
    **dim_ranges: tuple[int, int | None],
) -> str | None:
    """Return what a layer of 2 x 4 queries and 4 keys is, where `ms` is predicted."""

    def told(layer: LayerInfo, _: LayerNodes, __: Platform) -> Prediction:
        dense, sparse = ms(layer)
        return Prediction({"dense": dense, "sparse": sparse}, {})

    monkeypatch.setattr(module, "predict", told)
    built = built or one_layer(["batch", "seq"], ["batch", "seq"])
    layer = replace(layer, batch=2, seq_len=4, kv_len=4)
    (found,) = first_choices(built, [layer], platform=Platform(), dims=DIMS, dim_ranges=dim_ranges)
    return choice_text(found)


def test_another_choice_at_other_sizes_becomes_a_range(monkeypatch: pytest.MonkeyPatch):
    def ms(layer: LayerInfo) -> tuple[float, float]:
        assert layer.seq_len is not None
        return (2.0, 1.0) if layer.seq_len <= 8 else (1.0, 2.0)

    assert chosen_by_size(monkeypatch, ms) == "sparse if seq<=11, else dense"


def test_keys_have_sizes_of_their_own(monkeypatch: pytest.MonkeyPatch):
    def ms(layer: LayerInfo) -> tuple[float, float]:
        assert layer.kv_len is not None
        return (2.0, 1.0) if layer.kv_len <= 5 else (1.0, 2.0)

    built = one_layer(["batch", 1], ["batch", "seq + 1"])
    assert chosen_by_size(monkeypatch, ms, built=built) == "sparse if seq<=5, else dense"


@pytest.mark.parametrize(
    ("limits", "expected"), [((1, None), "sparse if batch<=5, else dense"), ((1, 4), "sparse")]
)
def test_sizes_that_the_trace_does_not_take_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int | None], expected: str
):
    def ms(layer: LayerInfo) -> tuple[float, float]:
        return (2.0, 1.0) if layer.batch <= 4 else (1.0, 2.0)

    assert chosen_by_size(monkeypatch, ms, batch=limits) == expected


@pytest.mark.parametrize("there", [(0.96, 1.0), (0.07, 0.099)])
def test_small_gain_at_other_sizes_is_none(monkeypatch, there: tuple[float, float]):
    """Less than 5 %, or less than what an If costs."""

    def ms(layer: LayerInfo) -> tuple[float, float]:
        return (2.0, 1.0) if layer.batch == 2 else there

    assert chosen_by_size(monkeypatch, ms) == "sparse"


@pytest.mark.parametrize("op", ["MoHAggregatedAttention", "MoHAttention"])
def test_layer_whose_sizes_are_not_told_has_one_choice(monkeypatch: pytest.MonkeyPatch, op: str):
    def ms(layer: LayerInfo) -> tuple[float, float]:
        return (2.0, 1.0) if (layer.batch, layer.seq_len) == (2, 4) else (1.0, 2.0)

    layer = replace(LAYERS[0], op=op)
    known = op == "MoHAggregatedAttention"
    built = one_layer(["batch", "seq"], ["batch", "seq" if known else "seq*batch"])
    assert chosen_by_size(monkeypatch, ms, built=built, layer=layer) == "sparse"


def sizes(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"batch": batch, "seq": seq} for batch, seq in pairs]


def ranged(pairs: list[tuple[int, int]], *choices: str) -> str | None:
    layer = by_size(PROJECTED_LAYER, sizes(*pairs), choices)
    if layer is None:
        return None
    found = [current_choice(layer, size) for size in sizes(*pairs)]
    assert found == list(choices), "every measured run has its choice"
    return choice_text(layer)


D, S, P = "dense", "sparse", "projected"


@pytest.mark.parametrize(
    ("pairs", "choices", "text"),
    [
        # The boundary is the geometric mean of the sizes beside it.
        ([(1, 512), (1, 1)], (S, P), "projected if seq<=22, else sparse"),
        ([(1, 512), (1, 1), (1, 1)], (S, P, P), "projected if seq<=22, else sparse"),
        ([(1, 7), (1, 8)], (D, S), "dense if seq<=7, else sparse"),
        ([(1, 0), (1, 1)], (D, S), "dense if seq<=0, else sparse"),
        # Equal neighbours are one range.
        (
            [(1, 1), (1, 4), (1, 64), (1, 256), (1, 1024)],
            (P, P, S, S, D),
            "projected if seq<=16, else sparse if seq<=512, else dense",
        ),
        # What is compared is what tells the runs apart.
        ([(1, 9), (32, 9)], (D, S), "dense if batch<=5, else sparse"),
        ([(1, 1), (1, 64), (8, 1)], (D, S, D), "dense if seq<=8, else sparse"),
        # Neither batch nor seq alone: each has one value with two choices.
        ([(1, 1), (1, 64), (8, 1), (64, 1)], (D, S, D, S), "dense if batch*seq<=22, else sparse"),
        # Fewer ranges are better than a single dimension.
        ([(1, 16), (2, 4), (3, 1), (4, 32)], (S, D, D, S), "dense if seq<=8, else sparse"),
        # One choice needs no range.
        ([(1, 1), (1, 9)], (D, D), "dense"),
        ([(1, 9)], (S,), "sparse"),
        ([(1, 9), (1, 9)], (S, S), "sparse"),
    ],
)
def test_choices_at_sizes_become_ranges(
    pairs: list[tuple[int, int]], choices: tuple[str, ...], text: str
):
    assert ranged(pairs, *choices) == text


def test_runs_of_one_size_cannot_differ():
    """As where one has more heads open."""
    assert ranged([(1, 9), (1, 9)], "dense", "sparse") is None
    assert by_size(PROJECTED_LAYER, [{}, {}], ["dense", "sparse"]) is None
    assert by_size(PROJECTED_LAYER, [{}, {}], ["dense", "dense"]) is not None


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        ({"dense": 1.0, "sparse": 2.0}, "dense"),
        ({"dense": 2.0, "sparse": 1.0}, "sparse"),
        ({"dense": 1.0, "sparse": 1.0}, "sparse"),
        # A gain that an If would eat up.
        ({"dense": 0.02, "sparse": 0.02 + SWITCH_MS / 2}, "sparse"),
    ],
)
def test_other_choice_has_to_be_clearly_faster(ms: dict[str, float], expected: str):
    samples = {choice: (item,) * 7 for choice, item in ms.items()}
    assert fastest_there(samples, {}, otherwise="sparse") == expected


def test_gain_within_noise_is_none():
    samples = {"dense": (1.0, 2.0) * 10, "sparse": (2.0, 1.0) * 10}
    assert fastest_there(samples, {"dense": 1.0, "sparse": 2.0}, otherwise="sparse") == "sparse"


def test_layer_may_be_made_dense_at_some_sizes():
    at = sizes((1, 1), (1, 64), (1, 1024))
    layer: LayerInfo | None = by_size(PROJECTED_LAYER, at, ["projected", "sparse", "sparse"])
    assert layer is not None
    made = dense_at(layer, at, [2])
    assert made is not None
    assert choice_text(made) == "projected if seq<=8, else sparse if seq<=256, else dense"
    for slower, text in (([0], "dense if seq<=8, else sparse"), ([0, 1, 2], "dense")):
        made = dense_at(layer, at, slower)
        assert made is not None
        assert choice_text(made) == text
