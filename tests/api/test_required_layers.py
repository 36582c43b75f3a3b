"""An export that replaced fewer layers than required is refused, with what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.config.export_config import ExportConfig, RequiredLayers
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.export_package import require_layers, required_layers
from moh_deploy.package import NearMiss
from tests.handmade_package import LAYER

KEPT = replace(LAYER, path="kept", replaced=False, node=None, reason="tanh is in the way")
NEAR = NearMiss(("block",), "softmax was followed; lost at flip", "attention.py:8", None)


@pytest.mark.parametrize(
    ("wanted", "layers", "near_misses"),
    [
        (None, (), (NEAR,)),
        (1, (LAYER, KEPT), (NEAR,)),
        (2, (LAYER, LAYER), ()),
        ("all", (LAYER,), ()),
        (0, (), (NEAR,)),
    ],
)
def test_enough_layers_pass(
    wanted: RequiredLayers | None, layers: tuple[object, ...], near_misses: tuple[NearMiss, ...]
):
    require_layers(wanted, layers, near_misses)


@pytest.mark.parametrize(
    ("wanted", "layers", "near_misses", "message"),
    [
        (
            2,
            (LAYER, KEPT),
            (),
            "1 MoH layer of 2 became operators, expected at least 2 (require_layers).\n"
            "kept: tanh is in the way",
        ),
        (
            "all",
            (LAYER,),
            (NEAR,),
            "1 MoH layer of 1 became operators, expected all, 1 or more, and no near miss"
            " (require_layers).\n"
            "Besides, 1 place looks like one:\n"
            "block: softmax was followed; lost at flip (attention.py:8)",
        ),
        (
            "all",
            (LAYER, KEPT),
            (),
            "1 MoH layer of 2 became operators, expected all, 1 or more, and no near miss"
            " (require_layers).\n"
            "kept: tanh is in the way",
        ),
        (
            1,
            (),
            (),
            "0 MoH layers of 0 became operators, expected at least 1 (require_layers).\n"
            "This model has no MoH layer: it is an ordinary ONNX model.",
        ),
        (
            "all",
            (),
            (),
            "0 MoH layers of 0 became operators, expected all, 1 or more, and no near miss"
            " (require_layers).\nThis model has no MoH layer: it is an ordinary ONNX model.",
        ),
    ],
)
def test_missing_layers_are_refused_with_what_is_known_of_them(
    wanted: RequiredLayers,
    layers: tuple[object, ...],
    near_misses: tuple[NearMiss, ...],
    message: str,
):
    with pytest.raises(ExportError) as refused:
        require_layers(wanted, layers, near_misses)
    assert refused.value.message == message
    assert refused.value.exit_code == 4


def test_option_wins_over_the_configuration():
    config = ExportConfig(require_layers=3)
    options = ExportOptions("model.pt", Path("out"))
    assert required_layers(options, config) == 3
    assert required_layers(replace(options, require_layers="all"), config) == "all"
    assert required_layers(options, ExportConfig()) is None


@pytest.mark.parametrize("wanted", [-1, "most"])
def test_what_is_no_number_of_layers_is_refused(wanted: object):
    options = ExportOptions("model.pt", Path("out"), require_layers=wanted)
    with pytest.raises(
        ConfigError, match=rf"require_layers is '{wanted}', expected a number from 0 on"
    ):
        required_layers(options, ExportConfig())
