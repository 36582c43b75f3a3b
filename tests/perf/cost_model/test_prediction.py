from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo
from moh_deploy.perf.cost_model import prediction as module
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import (
    Prediction,
    platform_of,
    predict,
    shape_of,
)
from moh_deploy.runtime.kernel_use import KernelUse
from tests.handmade_package import LAYER, MANIFEST

BIG = replace(
    LAYER,
    num_heads=16,
    num_kv_heads=16,
    head_dim=24,
    num_shared_heads=4,
    seq_len=196,
    kv_len=196,
    op="MoHAttention",
)
PROJECTED = replace(BIG, query_projection="q", output_projection="o")
NODES = LayerNodes("MoHAttention")
WITH_PROJECTIONS = LayerNodes("MoHAttention", query_features=384, output_features=384)


def predicted(
    layer: LayerInfo = PROJECTED, nodes: LayerNodes = WITH_PROJECTIONS, **options: object
) -> Prediction:
    found = predict(layer, nodes, Platform("avx512", **options))
    assert found is not None
    return found


def test_nothing_is_predicted_of_a_gpu():
    assert predict(BIG, NODES, Platform(runtime="onnxruntime-cuda")) is None


def test_few_active_heads_are_projected_and_many_are_not():
    assert predicted(replace(PROJECTED, active_share=0.5)).best == "projected"
    assert predicted(replace(PROJECTED, active_share=0.95)).best == "sparse"
    assert predicted(BIG, NODES).best == "sparse"


def test_break_even_is_where_two_choices_take_as_long():
    found = predicted()
    share = found.break_even["projected"]
    assert share is not None
    assert 0.5 < share < 1
    at = predicted(replace(PROJECTED, active_share=share))
    assert at.ms["projected"] == pytest.approx(at.ms["sparse"], rel=1e-3)
    below, above = (predicted(replace(PROJECTED, active_share=share + d)) for d in (-0.05, 0.05))
    assert below.ms["projected"] < below.ms["sparse"]
    assert above.ms["projected"] > above.ms["sparse"]


def test_choice_that_always_wins_gains_up_to_all_heads_and_one_that_never_does_has_no_share(
    monkeypatch: pytest.MonkeyPatch,
):
    assert predicted().break_even["sparse"] == 1.0
    monkeypatch.setattr(module, "milliseconds", lambda shape, choice, _: float(choice != "dense"))
    assert predicted().break_even == {"sparse": None, "projected": None}
    assert predicted().best == "dense"


def test_nearly_equal_choices_are_decided_for_the_plainer():
    assert Prediction({"dense": 1.0, "sparse": 0.98}, {}).best == "dense"
    assert Prediction({"dense": 1.0, "sparse": 0.5, "projected": 0.49}, {}).best == "sparse"
    assert Prediction({"dense": 1.0, "sparse": 1.2, "projected": 0.9}, {}).best == "projected"


@pytest.mark.parametrize(
    "unknown", ["seq_len", "kv_len", "num_kv_heads", "head_dim", "active_share"]
)
def test_nothing_is_predicted_where_a_size_is_unknown(unknown: str):
    layer = replace(PROJECTED, **{unknown: None})
    assert predict(layer, WITH_PROJECTIONS, Platform()) is None


def test_nothing_is_predicted_for_projections_of_unknown_width():
    for nodes in (replace(WITH_PROJECTIONS, query_features=None), NODES):
        assert predict(PROJECTED, nodes, Platform()) is None


def test_nothing_is_predicted_where_nothing_can_be_chosen():
    kept = replace(LAYER, replaced=False, node=None)
    assert predict(kept, LayerNodes(None), Platform()) is None


def test_window_is_told_apart_from_pooled_keys():
    """A layer with windows counts them among its keys."""
    layer = replace(BIG, op="MoHAggregatedAttention", kv_len=58)
    shape = shape_of(layer, LayerNodes("MoHAggregatedAttention", window=9))
    assert (shape.kv_len, shape.window) == (49, 9)


def test_more_heads_are_not_shared_than_are_active():
    shape = shape_of(replace(BIG, active_share=0.1), NODES)
    assert shape.num_shared_heads == 1


def test_platform_is_the_runtime_that_the_package_was_tuned_for():
    """And OpenVINO where ONNX Runtime rounds results to bfloat16, which has no speed of its own."""
    kernels = KernelUse(Path("lib.so"), None, "avx512_bf16", "bfloat16")
    emulated = replace(kernels, emulated_dtype="bfloat16")
    tuned = replace(MANIFEST, runtime="openvino")
    assert platform_of(MANIFEST, kernels) == Platform("avx512_bf16", compute_type="bfloat16")
    assert platform_of(MANIFEST, emulated).runtime == "openvino"
    assert platform_of(tuned, kernels).runtime == "openvino"
    assert platform_of(tuned, emulated, "onnxruntime", 2) == Platform(
        "avx512_bf16", 2, compute_type="bfloat16"
    )
    low = replace(MANIFEST, precision="bfloat16")
    plain = replace(kernels, instruction_set="avx512")
    assert platform_of(low, plain) == Platform("avx512", precision="bfloat16")
