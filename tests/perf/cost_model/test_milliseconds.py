from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.perf.cost_model import milliseconds as cost_model
from moh_deploy.perf.cost_model.milliseconds import COSTS, LayerShape, Platform, milliseconds

VIT = LayerShape(1, 196, 196, 16, 16, 24, 4, 0.5)
PROJECTED = replace(VIT, query_features=384, output_features=384)
WINDOWED = replace(VIT, kv_len=49, window=9)


# Of the function body over the kernel at half of the heads, measured on another processor (AMD,
# Zen 4) than the one that the costs were fitted to: benchmarks/RESULTS.md, "Against the function
# body of the same package".
@pytest.mark.parametrize(
    ("shape", "measured"),
    [
        (VIT, 3.8),
        (LayerShape(2, 256, 256, 16, 16, 72, 4, 0.5), 2.8),
        (LayerShape(1, 256, 256, 24, 24, 72, 6, 0.5), 2.8),
        (LayerShape(1, 1024, 1024, 32, 32, 64, 8, 0.5), 2.4),
        (LayerShape(1, 512, 512, 32, 8, 128, 8, 0.5, is_causal=True), 4.3),
        (LayerShape(1, 2048, 2048, 32, 8, 128, 8, 0.5, is_causal=True), 5.8),
    ],
)
def test_ratios_measured_elsewhere_are_predicted(shape: LayerShape, measured: float):
    predicted = milliseconds(shape, "dense") / milliseconds(shape, "sparse")
    assert measured / 1.3 <= predicted <= measured * 1.3


@pytest.mark.parametrize("shape", [VIT, PROJECTED, WINDOWED])
def test_only_dense_layers_take_as_long_whatever_is_chosen(shape: LayerShape):
    few, many = (replace(shape, active_share=share, num_shared_heads=0) for share in (0.25, 0.75))
    assert milliseconds(few, "dense") == milliseconds(many, "dense")
    assert milliseconds(few, "sparse") < milliseconds(many, "sparse")


def test_projections_count_only_where_there_are_some():
    assert milliseconds(VIT, "projected") == milliseconds(VIT, "sparse")
    assert milliseconds(PROJECTED, "dense") > milliseconds(VIT, "dense")
    assert milliseconds(PROJECTED, "sparse") > milliseconds(VIT, "sparse")


def test_sparse_projections_pay_with_few_heads_and_not_with_all():
    half, every = PROJECTED, replace(PROJECTED, active_share=1.0)
    assert milliseconds(half, "projected") < milliseconds(half, "sparse")
    assert milliseconds(every, "projected") > milliseconds(every, "sparse")


def test_sizes_and_masks_cost_time():
    for bigger in (
        replace(VIT, batch=2),
        replace(VIT, seq_len=300),
        replace(VIT, kv_len=300),
        replace(VIT, head_dim=64),
        replace(VIT, has_mask=True),
    ):
        assert milliseconds(bigger, "dense") > milliseconds(VIT, "dense")
    causal = replace(VIT, is_causal=True)
    assert milliseconds(causal, "sparse") < milliseconds(VIT, "sparse")


def test_grouped_heads_read_less():
    step = LayerShape(1, 1, 2048, 32, 32, 128, 0, 0.5)
    grouped = replace(step, num_kv_heads=8)
    assert milliseconds(grouped, "sparse") < milliseconds(step, "sparse")
    # A group is read if any of its heads is open: fewer are spared.
    spared = [
        milliseconds(replace(shape, active_share=0.25), "sparse") / milliseconds(shape, "sparse")
        for shape in (step, grouped)
    ]
    assert spared[0] < spared[1]


def test_threads_share_the_work_but_not_the_call():
    one, two = (milliseconds(VIT, "dense", Platform(threads=threads)) for threads in (1, 2))
    call = COSTS["dense_attention"]["call"] / 1e6
    assert two == pytest.approx(call + (one - call) / 2)


def test_narrow_vectors_are_slower():
    sets = ("avx512", "avx2", "baseline")
    times = [milliseconds(VIT, "sparse", Platform(name)) for name in sets]
    assert times[0] < times[1] < times[2]
    assert milliseconds(VIT, "sparse") == milliseconds(VIT, "sparse", Platform("avx512_bf16"))


def test_openvino_multiplies_all_heads_in_projections():
    openvino = Platform(runtime="openvino")
    few = replace(PROJECTED, active_share=0.25)
    assert milliseconds(few, "projected", openvino) == milliseconds(few, "sparse", openvino)
    assert milliseconds(few, "sparse", openvino) < milliseconds(few, "dense", openvino)


def test_products_of_bfloat16_are_faster_where_they_are():
    kernel = Platform(compute_type="bfloat16")
    assert milliseconds(VIT, "sparse", kernel) < milliseconds(VIT, "sparse")
    # ONNX Runtime computes function bodies in float32, and a package says what projections are in.
    assert milliseconds(PROJECTED, "dense", kernel) == milliseconds(PROJECTED, "dense")
    exact = Platform(runtime="openvino", compute_type="bfloat16")
    low = replace(exact, precision="bfloat16")
    assert milliseconds(VIT, "dense", low) == milliseconds(VIT, "dense", exact)
    assert milliseconds(PROJECTED, "dense", low) < milliseconds(PROJECTED, "dense", exact)


def test_every_cost_has_its_count():
    """A misspelt name would cost nothing."""
    for kind, costs in COSTS.items():
        kind, *_ = kind.split(", ")  # the runtime and dtype that the costs are of come behind it
        count = getattr(cost_model, kind)
        counts = count(PROJECTED, 384) if kind.endswith("projection") else count(WINDOWED)
        assert costs.keys() <= counts.keys(), kind
        assert all(cost > 0 for cost in costs.values())


SHAPE = LayerShape(2, 7, 11, 8, 4, 16, 2, 0.5)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (7, 11), (1, 9), (5, 3), (1, 1)])
def test_causal_share_is_what_a_mask_leaves(queries: int, keys: int):
    # Query s sits at position s + T - S.
    seen = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    shape = replace(SHAPE, seq_len=queries, kv_len=keys, is_causal=True)
    assert shape.visible_share == pytest.approx(seen.mean())
    assert replace(shape, is_causal=False).visible_share == 1.0


@pytest.mark.parametrize(
    ("tokens", "group", "shared"), [(1, 2, 0), (3, 2, 2), (2, 4, 3), (1, 1, 0)]
)
def test_read_heads_are_those_that_a_token_chose(tokens: int, group: int, shared: int):
    """Against gates drawn at random, each routed head with the same chance."""
    heads, draws = 8, 20_000
    rng = np.random.default_rng(0)
    chosen = rng.random((draws, tokens, heads)) < 0.3
    chosen[..., :shared] = True
    read = chosen.any(axis=1).reshape(draws, heads // group, group).any(axis=-1).mean()
    share = (shared + 0.3 * (heads - shared)) / heads
    shape = LayerShape(1, tokens, 9, heads, heads // group, 16, shared, share)
    assert shape.read_kv_share == pytest.approx(read, abs=0.01)


def test_closed_layer_reads_nothing_and_an_open_one_everything():
    closed = replace(SHAPE, active_share=0.0, num_shared_heads=0)
    assert closed.read_kv_share == closed.used_head_share == 0.0
    every = replace(SHAPE, active_share=1.0)
    assert every.read_kv_share == every.used_head_share == 1.0
    assert replace(every, num_shared_heads=8).read_kv_share == 1.0


def test_windows_add_to_the_scores():
    assert SHAPE.scores == 2 * 7 * 8 * 11
    assert replace(SHAPE, window=9).scores == 2 * 7 * 8 * 20
