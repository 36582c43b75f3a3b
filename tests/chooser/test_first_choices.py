from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from moh_deploy.chooser import first_choices as module
from moh_deploy.chooser.first_choices import first_choices
from moh_deploy.chooser.prediction import Prediction
from moh_deploy.package import LayerInfo, LayerNodes
from tests.two_layers import LAYERS, write_two_layers


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
    chosen = first_choices(model, LAYERS, instruction_set="avx2")
    assert [layer.choice for layer in chosen] == ["dense", "sparse"]
    assert [replace(layer, choice=None) for layer in chosen] == list(LAYERS)


def test_layer_of_unknown_sizes_runs_on_kernels(model: ir.Model):
    layers = [
        replace(LAYERS[0], seq_len=None),
        replace(LAYERS[1], seq_len=None, output_projection="o"),
        replace(LAYERS[0], node=None, replaced=False),
    ]
    chosen = first_choices(model, layers, instruction_set=None)
    assert [layer.choice for layer in chosen] == ["sparse", "projected", None]
