from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo, Tuning
from moh_deploy.perf.choices_text import other_winners
from moh_deploy.perf.cost_model.prediction import Prediction
from moh_deploy.perf.inspect_report import InspectReport
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from tests.handmade_package import LAYER, MANIFEST
from tests.kernel_library import NO_KERNELS
from tests.report.layer_samples import inspected, tuned
from tests.report.shown import text_of, verbose_text_of
from tests.report.test_reports import KERNELS

SPARSE_WINS = Prediction({"dense": 1.5, "sparse": 1.0}, {"sparse": 0.875})
DENSE_WINS = Prediction({"dense": 1.0, "sparse": 1.25}, {"sparse": None})
PROJECTED_WINS = Prediction(
    {"dense": 2.0, "sparse": 1.5, "projected": 1.0}, {"sparse": 1.0, "projected": 0.8}
)
MEASURED = Tuning(
    source="measured",
    machine="Some CPU, 2 cores, avx2",
    runtime="ONNX Runtime 1.32.0",
    threads=1,
    clock="CPU",
    sizes=({"batch": 2, "seq": 3}, {"batch": 2, "seq": 1}),
    weights=(1.0, 2.0),
    layer_ms=(({"dense": 4.0, "sparse": 2.0}, {"dense": 0.1, "sparse": 0.2}),),
    model_ms=({"dense": 9.0, "chosen": 7.0}, {"dense": 1.0, "chosen": 1.0}),
)


def report(
    *layers: LayerInfo,
    predictions: Sequence[Prediction | None],
    tuning: Tuning | None = None,
    kernels: KernelUse = KERNELS,
) -> InspectReport:
    manifest = replace(MANIFEST, layers=layers, tuning=tuning)
    runs = tuple(LayerRun(layer.path, "kernel", None) for layer in layers)
    nodes = tuple(LayerNodes(layer.op) for layer in manifest.layers)
    return InspectReport(Path("p"), manifest, runs, nodes, tuple(predictions), "ORT", kernels)


def layer_json(shown: InspectReport) -> dict[str, object]:
    layers = shown.to_json()["layers"]
    assert isinstance(layers, list)
    (content,) = layers
    assert isinstance(content, dict)
    return content


def test_predicted_gain_and_break_even_are_shown():
    shown = report(LAYER, predictions=[SPARSE_WINS])
    text = verbose_text_of(shown)
    assert "│ blocks.0.attn │ sparse │       1.5 │          1 │             - │ 1.50x │" in text
    assert "87.5 %" in text
    assert "choices rest on predictions; `moh-deploy tune` measures them" in text
    content = layer_json(shown)
    assert content["predicted_ms"] == {"dense": 1.5, "sparse": 1.0}
    assert content["predicted_gain"] == 1.5
    assert content["predicted_fastest"] == "sparse"
    assert content["break_even_share"] == {"sparse": 0.875}
    assert (content["measured_ms"], content["measured_gain"]) == ({}, None)


def test_fastest_is_what_is_predicted_to_be_the_fastest_however_little():
    close = Prediction({"dense": 2.0, "sparse": 1.01, "projected": 1.0}, {})
    assert layer_json(report(LAYER, predictions=[close]))["predicted_fastest"] == "projected"


def test_no_gain_is_promised_where_no_gate_is_ever_zero():
    shown = report(replace(LAYER, active_share=1.0), predictions=[SPARSE_WINS])
    assert layer_json(shown)["predicted_gain"] is None
    assert "no gate was zero in the recorded runs, so no head is skipped" in text_of(shown)


def test_names_of_routers_are_explained():
    assert f"router {LAYER.router}: " in verbose_text_of(report(LAYER, predictions=[None]))


def test_layer_that_is_faster_densely_is_named():
    layers = [replace(LAYER, choice="dense"), replace(LAYER, path="blocks.1.attn")]
    shown = report(*layers, predictions=[DENSE_WINS, SPARSE_WINS])
    text = verbose_text_of(shown)
    assert "dense is faster here, as predicted: blocks.0.attn\n" in text
    assert "never" in text


def test_layer_that_could_be_faster_otherwise_is_named():
    layer = replace(LAYER, choice="sparse", output_projection="o")
    text = text_of(report(layer, predictions=[PROJECTED_WINS]))
    assert "chosen sparse, predicted to be faster projected: blocks.0.attn" in text
    text = text_of(report(replace(LAYER, choice="sparse"), predictions=[DENSE_WINS]))
    assert "dense is faster here, as predicted: blocks.0.attn" in text
    assert "chosen sparse, predicted to be faster dense: blocks.0.attn" in text


def test_where_nothing_is_known_nothing_is_said():
    shown = report(LAYER, predictions=[None])
    assert "dense is faster" not in text_of(shown)
    content = layer_json(shown)
    assert (content["predicted_ms"], content["predicted_gain"]) == ({}, None)
    assert content["predicted_fastest"] is None


def test_without_kernels_no_gain_is_promised():
    text = text_of(report(LAYER, predictions=[SPARSE_WINS], kernels=NO_KERNELS))
    assert "without kernels, as here, every choice runs the same function bodies" in text


def test_what_was_measured_is_shown_with_where_and_how():
    shown = report(replace(LAYER, choice="sparse"), predictions=[SPARSE_WINS], tuning=MEASURED)
    text = text_of(shown)
    assert (
        "choices measured at batch=2, seq=3; batch=2, seq=1 (CPU time, 1 thread,"
        " ONNX Runtime 1.32.0, Some CPU, 2 cores, avx2)"
    ) in text
    # 4 + 2 * 0.1 over 2 + 2 * 0.2.
    assert "1.75x" in text
    assert "blocks.0.attn: at batch=2, seq=1 dense was faster, 0.1 ms against 0.2" in text
    content = layer_json(shown)
    assert content["measured_ms"] == pytest.approx({"dense": 4.2 / 3, "sparse": 2.4 / 3})
    assert content["measured_gain"] == pytest.approx(1.75)


def test_choices_given_by_hand_are_said_to_be():
    given = Tuning("given", "Some CPU")
    assert "choices given by hand" in text_of(report(LAYER, predictions=[None], tuning=given))


def test_package_without_choices_has_no_such_table():
    kept = replace(LAYER, replaced=False, node=None)
    shown = report(kept, predictions=[None])
    assert "choices" not in text_of(shown)
    assert layer_json(shown)["choice"] is None


def test_what_was_measured_without_times_of_layers_is_shown():
    tuning = replace(MEASURED, runtime="OpenVINO 2026.4.1", threads=None, layer_ms=())
    text = text_of(report(LAYER, predictions=[SPARSE_WINS], tuning=tuning))
    assert "(CPU time, the runtime's threads, OpenVINO 2026.4.1, Some CPU" in " ".join(text.split())
    assert "was faster" not in text


def test_32_layers_fit_a_screen_and_verbose_has_them_all():
    for made in (inspected(32), tuned(32)):
        lines = text_of(made, 80).splitlines()
        assert len(lines) < 40
        assert lines[0].startswith(("32 MoH layers: 32 kernel", "TUNED: 32 sparse"))
        assert "... and 29 more: --verbose" in lines
        assert "blocks.30.attn" in verbose_text_of(made)


def test_layers_in_which_another_choice_was_faster_are_one_line():
    (line,) = other_winners(tuned(8).layers, tuned(8).tuning)
    assert line == (
        "blocks.3.attn ... blocks.7.attn (5 layers): at batch=4, seq=256 dense was faster, 4 ms"
        " against 9 in blocks.7.attn"
    )
