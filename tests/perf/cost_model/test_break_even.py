from dataclasses import replace

import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import (
    BreakEven,
    LayerBreakEven,
    break_even,
    predict,
    speed_by_share,
)
from tests.handmade_package import LAYER

NODES = LayerNodes("MoHAttention", query_features=64, output_features=64)
SMALL = replace(
    LAYER,
    num_heads=8,
    num_kv_heads=8,
    head_dim=16,
    num_shared_heads=2,
    batch=2,
    seq_len=16,
    kv_len=16,
    active_share=0.75,
    op="MoHAttention",
    query_projection="q",
    output_projection="o",
)
BATCHES = (32, 1, 2, 8)


def found(*layers: LayerInfo, example: int = 2) -> tuple[LayerBreakEven, ...]:
    nodes = [NODES] * len(layers)
    return break_even(layers, nodes, BATCHES, example=example, platform=Platform("avx512"))


def test_example_is_what_one_layer_is_predicted_at():
    at_two = found(SMALL)[0].sizes[1]
    prediction = predict(SMALL, NODES, Platform("avx512"))
    assert at_two.batch == 2
    assert at_two.dense_ms == pytest.approx(prediction.ms["dense"])
    assert at_two.ms == pytest.approx(min(prediction.ms["sparse"], prediction.ms["projected"]))


def test_share_is_where_skipping_takes_as_long_as_standard_operators():
    layer, _ = found(SMALL)
    undecided = [item for item in layer.sizes if item.share not in (None, 1.0)]
    for item in undecided:
        again = found(replace(SMALL, active_share=item.share))[0]
        (same,) = [size for size in again.sizes if size.batch == item.batch]
        assert same.ms == pytest.approx(same.dense_ms, rel=1e-3)
    for item in layer.sizes:
        assert item.pays == (item.share is not None and item.share > SMALL.active_share)


def test_all_layers_together_are_the_sum_of_each():
    first, second, together = found(SMALL, replace(SMALL, path="other", seq_len=64, kv_len=64))
    assert (first.path, second.path, together.path) == ("blocks.0.attn", "other", None)
    for item, other, both in zip(first.sizes, second.sizes, together.sizes, strict=True):
        assert both.ms == pytest.approx(item.ms + other.ms)
        assert both.dense_ms == pytest.approx(item.dense_ms + other.dense_ms)


def test_batches_are_of_the_model_and_windows_are_samples_of_a_layer():
    # Eight windows of two samples: a sample is four of them.
    windowed = found(replace(SMALL, batch=8), example=2)[0].sizes[0]
    four = predict(replace(SMALL, batch=4), NODES, Platform("avx512"))
    assert (windowed.batch, windowed.dense_ms) == (1, pytest.approx(four.ms["dense"]))


def test_layer_of_unknown_sizes_is_left_out():
    assert found(replace(SMALL, seq_len=None)) == ()


def test_it_pays_from_where_it_pays_at_every_larger_size():
    def sizes(*pays: bool) -> LayerBreakEven:
        ones = [BreakEven(n, 1.0, 1.0, 2.0 if yes else 0.5, None) for n, yes in enumerate(pays, 1)]
        return LayerBreakEven("layer", 0.5, tuple(ones))

    assert sizes(False, True, True).pays_from == 2
    assert sizes(True, False, True).pays_from == 3
    assert sizes(True, True, False).pays_from is None


def test_speed_falls_with_open_heads_and_crosses_dense_at_the_break_even():
    # Long sequences of large heads in OpenVINO: there dense wins where most heads are open.
    platform = Platform("avx2", runtime="openvino")
    large = replace(SMALL, seq_len=1024, kv_len=1024, head_dim=128)
    layers = [replace(large, active_share=share) for share in (0.25, 0.5, 0.75, 1.0)]
    nodes = [LayerNodes("MoHAttention", query_features=1024, output_features=1024)] * len(layers)
    speed = speed_by_share(layers, nodes, platform)
    together = break_even(layers, nodes, [2], example=2, platform=platform)[-1].sizes[0]
    assert speed.speed == pytest.approx(together.dense_ms / together.ms)
    assert speed.active_share == pytest.approx(0.625)
    assert speed.break_even == pytest.approx(0.804, abs=0.001)
    # Two of eight heads are shared, and so always open.
    assert [share for share, _ in speed.points] == [percent / 100 for percent in range(25, 101, 5)]
    for share, times in speed.points:
        at = predict(replace(large, active_share=share), nodes[0], platform)
        assert times == pytest.approx(at.ms["dense"] / min(at.ms["sparse"], at.ms["projected"]))
        assert (times > 1) == (share < speed.break_even)


def test_no_speed_is_predicted_where_nothing_is_known():
    assert speed_by_share([replace(SMALL, seq_len=None)], [NODES], Platform()) is None
    assert speed_by_share([SMALL], [NODES], Platform(runtime="onnxruntime-cuda")) is None
    shared = replace(SMALL, num_shared_heads=8, active_share=1.0)
    assert speed_by_share([shared], [NODES], Platform()) is None
