from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo, choice_text
from moh_deploy.perf.cost_model import first_choices as module
from moh_deploy.perf.cost_model.first_choices import first_choices
from moh_deploy.perf.cost_model.prediction import Prediction
from tests.graph.models import attention, value
from tests.graph.models import model as model_of
from tests.two_layers import FIRST, LAYERS, write_two_layers

DIMS = {"batch": 2, "seq": 4}


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return ir.load(write_two_layers(tmp_path / "package").model_path)


def test_every_layer_is_chosen_by_its_own_prediction(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
):
    def told(layer: LayerInfo, nodes: LayerNodes, **_: object) -> Prediction:
        assert nodes.op == "MoHAttention"
        sparse = 0.5 if layer.path == "blocks.1.attn" else 2.0
        return Prediction({"dense": 1.0, "sparse": sparse}, {})

    monkeypatch.setattr(module, "predict", told)
    chosen = first_choices(model, LAYERS, instruction_set="avx2", dims=DIMS, dim_ranges={})
    assert [layer.choice for layer in chosen] == ["dense", "sparse"]
    assert [replace(layer, choice=None) for layer in chosen] == list(LAYERS)


def test_layer_of_unknown_sizes_runs_on_kernels(model: ir.Model):
    layers = [
        replace(LAYERS[0], seq_len=None),
        replace(LAYERS[1], seq_len=None, output_projection="o"),
        replace(LAYERS[0], node=None, replaced=False),
    ]
    chosen = first_choices(model, layers, instruction_set=None, dims=DIMS, dim_ranges={})
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

    def told(layer: LayerInfo, _: LayerNodes, **__: object) -> Prediction:
        dense, sparse = ms(layer)
        return Prediction({"dense": dense, "sparse": sparse}, {})

    monkeypatch.setattr(module, "predict", told)
    built = built or one_layer(["batch", "seq"], ["batch", "seq"])
    layer = replace(layer, batch=2, seq_len=4, kv_len=4)
    (found,) = first_choices(built, [layer], instruction_set=None, dims=DIMS, dim_ranges=dim_ranges)
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
def test_small_gain_at_other_sizes_is_none(
    monkeypatch: pytest.MonkeyPatch, there: tuple[float, float]
):
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
