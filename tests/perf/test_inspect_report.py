"""What can be saved follows from sizes: much of a prompt's attention, little of a grouped cache."""

from dataclasses import replace

import pytest

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import LayerInfo, Manifest, TensorInfo, TextGeneration
from moh_deploy.perf.inspect_report import decoder_savings, savings_lines
from tests.handmade_package import without_layers

HEADS, SIZE, TOKENS = 8, 16, 4
CORE = 4 * TOKENS * HEADS * SIZE * TOKENS
OTHERS = 1000 * TOKENS


def layer(kv_heads: int, active_share: float) -> LayerInfo:
    return LayerInfo(
        path="a",
        num_heads=HEADS,
        num_kv_heads=kv_heads,
        head_dim=SIZE,
        num_shared_heads=0,
        top_k=4,
        router="top_k",
        router_replaced=True,
        replaced=True,
        reason=None,
        node="a.MoHAttention",
        gates="g",
        batch=1,
        seq_len=TOKENS,
        kv_len=TOKENS,
        active_share=active_share,
        op="MoHAttention",
    )


def manifest(one: LayerInfo, context_length: int | None = None) -> Manifest:
    return replace(
        without_layers(),
        layers=(one,),
        dims={"batch": 1, "seq": TOKENS},
        total_flops=CORE + OTHERS,
        precision="float32",
        text_generation=TextGeneration(9, context_length),
    )


NODES = LayerNodes(op="MoHAttention")


def test_half_of_the_heads_are_half_of_the_attention():
    short, long = decoder_savings(manifest(layer(8, 0.5)), [NODES], weight_bytes=0)
    core = 4 * HEADS * SIZE * 512**2
    assert (short.length, long.length) == (512, 8192)
    assert short.prompt_share == pytest.approx(0.5 * core / (core + 1000 * 512))
    assert short.step_share == short.cache_share == pytest.approx(0.5)


def test_grouped_queries_save_little_of_the_cache():
    (short, _) = decoder_savings(manifest(layer(2, 0.5)), [NODES], weight_bytes=0)
    assert short.cache_share == pytest.approx(0.5**4)  # all four heads of a group closed


def test_weights_are_read_by_every_step():
    cache = 2 * 8 * SIZE * 512 * 4
    (short, _) = decoder_savings(manifest(layer(8, 0.5)), [NODES], weight_bytes=cache)
    assert short.step_share == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("precision", "cache", "weight"),
    [("float16", "float16", 2), ("int8", "float32", 1), ("int4", "float32", 0.625)],
)
def test_weights_and_caches_have_widths_of_their_own(precision: str, cache: str, weight: float):
    """Half of the heads: half of a cache, and half of the projections that skip."""
    made = replace(
        manifest(layer(8, 0.5)),
        precision=precision,
        inputs=(TensorInfo("past_key_values.0.key", cache, ("batch", 8, "past", SIZE)),),
    )
    nodes = LayerNodes(op="MoHAttention", output_features=1000)
    plain, projected = (
        decoder_savings(made, [item], weight_bytes=10**6)[0] for item in (NODES, nodes)
    )
    caches = 2 * 8 * SIZE * 512 * (2 if cache == "float16" else 4)
    assert plain.step_share == pytest.approx(caches / 2 / (10**6 + caches))
    skipped = (projected.step_share - plain.step_share) * (10**6 + caches)
    assert skipped == pytest.approx(HEADS * SIZE * 1000 * weight / 2)


def test_lengths_end_with_the_position_table():
    found = decoder_savings(manifest(layer(8, 0.5), 600), [NODES], weight_bytes=0)
    assert [item.length for item in found] == [512, 600]
    assert "at 512 tokens skipping heads saves at most" in next(savings_lines(found))


def test_of_other_models_nothing_is_said():
    plain = replace(manifest(layer(8, 0.5)), text_generation=None)
    assert decoder_savings(plain, [NODES], weight_bytes=0) == ()
