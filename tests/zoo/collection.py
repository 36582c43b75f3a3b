"""The zoo as one table."""

from tests.zoo import (
    composed,
    gating,
    handmade,
    language,
    ordinary,
    published,
    routing,
    sdpa,
    windowed,
)
from tests.zoo import windowed_otherwise as otherwise
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, seeded, tokens_in
from tests.zoo.rarities import RARE


def top_k(heads: int, k: int, *, kv: int | None = None) -> Expected:
    """Expect one layer with a single-stage weighted router."""
    return Expected((ExpectedLayer(heads, kv or heads, k, 0, "top_k"),))


def ranked(k: int, *, shared: int = 0) -> Expected:
    """Expect one layer of the gating file whose best heads are weighed in another way."""
    return Expected((ExpectedLayer(gating.H, gating.H, k, shared, "ranked"),))


def mixed(k: int, *, shared: int) -> Expected:
    """Expect one layer of the gating file whose shared heads are weighed by their own logits."""
    return Expected((ExpectedLayer(gating.H, gating.H, k, shared, "mixed"),))


def scored(k: int) -> Expected:
    """Expect one layer of the gating file that ranks heads by another score than it weighs."""
    return Expected((ExpectedLayer(gating.H, gating.H, k, 0, "scored"),))


def custom() -> Expected:
    """Expect one layer of the gating file whose router ranks no heads that are counted."""
    return Expected((ExpectedLayer(gating.H, gating.H, None, None, "custom"),))


def pairs() -> Expected:
    """Expect one layer of the gating file that chooses one of two pairs of heads."""
    return Expected((ExpectedLayer(gating.H, gating.H, 1, 0, "custom"),))


def two_stage(heads: int, shared: int, k: int) -> ExpectedLayer:
    return ExpectedLayer(heads, heads, k, shared, "two_stage")


def query_norm(shared: int, k: int) -> ExpectedLayer:
    return ExpectedLayer(language.HEADS, language.KV_HEADS, k, shared, "query_norm")


def aggregated() -> ExpectedLayer:
    return ExpectedLayer(4, 4, 1, 2, "two_stage")


MIXER = two_stage(4, 2, 1)
NOTHING = Expected()

PUBLISHED = (
    ZooModel(
        "vit_two_stage",
        seeded(published.TinyVision),
        published.images_in,
        Expected((two_stage(6, 2, 2),) * 2),
        "two shared heads, convolutional stem, blocks in Sequential",
    ),
    ZooModel(
        "two_stage_one_shared",
        seeded(published.OneShared),
        tokens_in,
        Expected((two_stage(4, 1, 2),)),
        "the shared gate is a constant 1; gates are made on flattened tokens",
    ),
    ZooModel(
        "top_k_no_shared",
        seeded(published.NoShared),
        tokens_in,
        top_k(8, 3),
        "no shared heads, hence one stage",
    ),
    ZooModel(
        "all_shared",
        seeded(published.WeightedHeads),
        tokens_in,
        Expected((ExpectedLayer(4, 4, 0, 4, "shared"),)),
        "a weighted sum of all heads: nothing is chosen",
    ),
    ZooModel(
        "dit",
        seeded(published.Denoiser),
        published.noisy_latents_in,
        Expected((two_stage(6, 2, 3), ExpectedLayer(6, 6, 0, 6, "shared"))),
        "timestep and label condition adaLN; the second layer does not choose",
    ),
    ZooModel(
        "nested_sequential",
        seeded(published.stacked_encoder),
        tokens_in,
        Expected((two_stage(4, 1, 1), two_stage(4, 1, 1), ExpectedLayer(4, 4, 4, 0, "top_k"))),
        "a Sequential subclass in a Sequential; softmax of one shared head; top_k of all heads",
    ),
    ZooModel(
        "llama_prefill",
        seeded(lambda: language.Prefill(fixed=4, pick=2)),
        language.prompt_in,
        Expected((query_norm(4, 2),) * 2),
        "norms of queries route; GQA by expand, RoPE, padding and causal mask added",
    ),
    ZooModel(
        "llama_prefill_uneven",
        seeded(lambda: language.Prefill(fixed=2, pick=3, depth=1)),
        language.prompt_in,
        Expected((query_norm(2, 3),)),
        "the shared heads are not half of all",
    ),
    ZooModel(
        "llama_decode",
        seeded(lambda: language.DecodeStep(fixed=4, pick=2)),
        language.one_token_in,
        Expected((query_norm(4, 2),) * 2),
        "one token, cache as varargs, boolean mask of length past+1",
    ),
    ZooModel(
        "llama_chunk",
        seeded(lambda: language.ChunkedPrefill(fixed=4, pick=2, depth=1)),
        language.chunk_in,
        Expected((query_norm(4, 2),)),
        "several tokens after a cache; the causal mask is made inside",
    ),
)

CORES = (
    ZooModel(
        "sdpa_causal", seeded(sdpa.CausalSDPA), tokens_in, top_k(4, 2), "is_causal, dropout_p"
    ),
    ZooModel(
        "sdpa_bool_mask", seeded(sdpa.PaddedSDPA), sdpa.padded_in, top_k(4, 1), "bool mask input"
    ),
    ZooModel(
        "sdpa_float_mask",
        seeded(sdpa.BiasedSDPA),
        sdpa.biased_in,
        top_k(5, 3),
        "float mask input, scale=0.2, five heads, inner width unlike the model's",
    ),
    ZooModel(
        "sdpa_gqa",
        seeded(sdpa.GroupedSDPA),
        tokens_in,
        top_k(8, 4, kv=2),
        "enable_gqa, raw matrices",
    ),
    ZooModel(
        "sdpa_cross",
        seeded(sdpa.CrossSDPA),
        sdpa.memory_in,
        top_k(4, 2),
        "keys of another input and length, values wider than keys",
    ),
    ZooModel(
        "sdpa_qk_norm",
        seeded(sdpa.normed_pair),
        tokens_in,
        Expected((ExpectedLayer(4, 4, 2, 0, "top_k"),) * 2),
        "LayerNorm, then RMSNorm, on each head; a router with a hidden layer",
    ),
    ZooModel(
        "sdpa_mqa", seeded(sdpa.SharedKeyValue), tokens_in, top_k(4, 2, kv=1), "expand of one head"
    ),
    ZooModel(
        "matmul_masked_fill",
        seeded(handmade.DividesScores),
        tokens_in,
        top_k(4, 2),
        "triangular buffer sliced to the length",
    ),
    ZooModel(
        "bmm_time_first",
        seeded(handmade.Flattened),
        tokens_in,
        top_k(4, 3),
        "[B*H, T, D], time first",
    ),
    ZooModel(
        "bmm_flat_gates",
        seeded(handmade.FlattenedOther),
        tokens_in,
        top_k(6, 2),
        "gates folded to [B*H, S, 1]",
    ),
    ZooModel(
        "einsum_float32_softmax", seeded(handmade.LettersOne), tokens_in, top_k(4, 1), "bshd,bthd"
    ),
    ZooModel(
        "einsum_where_mask",
        seeded(handmade.LettersTwo),
        tokens_in,
        top_k(4, 2),
        "projection by einsum, nlhd letters, torch.where, per-head output projection",
    ),
    ZooModel("heads_first", seeded(handmade.HeadsFirst), tokens_in, top_k(4, 2), "[H, B, S, D]"),
    ZooModel(
        "relative_bias",
        seeded(handmade.RelativeBias),
        handmade.grid_in,
        top_k(4, 2),
        "a table gathered by relative position",
    ),
    ZooModel(
        "cosine",
        seeded(handmade.Cosine),
        tokens_in,
        top_k(4, 2),
        "clamped temperature, computed bias",
    ),
    ZooModel(
        "rope_interleaved_gqa",
        seeded(handmade.Interleaved),
        tokens_in,
        top_k(8, 3, kv=2),
        "rotation of neighbours; repeat_interleave on the head axis before einsum",
    ),
    ZooModel(
        "gqa_five_axes",
        seeded(handmade.GroupedLetters),
        tokens_in,
        top_k(6, 3, kv=3),
        "grouped einsum without copies",
    ),
    ZooModel(
        "gqa_broadcast_matmul",
        seeded(handmade.GroupedMatmul),
        tokens_in,
        top_k(6, 3, kv=2),
        "[B, G, R, S, D] against [B, G, 1, T, D], gates viewed as [B, S, G, R, 1]",
    ),
)

GATES = tuple(
    ZooModel(name, seeded(make), tokens_in, top_k(4, 2), (make.__doc__ or "").strip())
    for name, make in (
        ("gate_before_transpose", gating.BeforeTranspose),
        ("gate_after_merge_repeat", gating.AfterMergeRepeat),
        ("gate_after_merge_expand", gating.AfterMergeExpand),
        ("gate_on_probabilities", gating.OnProbabilities),
        ("gate_in_output_einsum", gating.InOutputEinsum),
        ("gate_per_head_projection", gating.PerHeadProjection),
        ("gate_in_place", gating.InPlace),
    )
)

SELECTION = tuple(
    ZooModel(name, seeded(make), tokens_in, expected, (make.__doc__ or "").strip())
    for name, make, expected in (
        ("select_scatter_ones", gating.ScatterOnes, ranked(2)),
        ("select_scatter_values", gating.ScatterValues, top_k(gating.H, 2)),
        ("select_threshold", gating.Threshold, ranked(2)),
        ("select_masked_softmax", gating.MaskedSoftmax, top_k(gating.H, 2)),
        ("select_sigmoid", gating.SigmoidChoice, ranked(2)),
        ("select_top_then_softmax", gating.TopThenSoftmax, top_k(gating.H, 2)),
        ("select_argmax", gating.BestOnly, ranked(1)),
        ("select_noisy", gating.Noisy, top_k(gating.H, 2)),
        ("select_bias_corrected", gating.BiasCorrected, scored(2)),
        ("select_fixed_and_chosen", gating.FixedAndChosen, ranked(2, shared=1)),
        ("select_group_limited", routing.GroupLimited, scored(1)),
        ("select_one_further", routing.OneFurther, top_k(gating.H, 2)),
        ("select_sigmoids_behind_shared", routing.SigmoidsBehindShared, ranked(2, shared=1)),
        ("select_sigmoid_beside_softmax", routing.SigmoidBesideSoftmax, mixed(2, shared=1)),
        ("select_sigmoids_one_projection", routing.SigmoidsBesideProbabilities, mixed(1, shared=2)),
        ("select_over_the_sum_of_all", routing.OverTheSumOfAll, mixed(2, shared=1)),
        ("select_heads_choose", routing.HeadsChooseTokens, custom()),
        ("select_top_p", routing.TopP, custom()),
        ("select_rectified", routing.Rectified, custom()),
        ("select_null_head", routing.NullHead, custom()),
        ("select_pairs", routing.PairsOfHeads, pairs()),
        ("select_pairs_five_axes", routing.PairsOnFiveAxes, pairs()),
        (
            "select_binary_mask",
            gating.BinaryMask,
            Expected((ExpectedLayer(4, 4, 2, 0, "mask"),)),
        ),
    )
)

ORDINARY = (
    ZooModel("plain", seeded(ordinary.Plain), tokens_in, NOTHING, "no gates"),
    ZooModel("constant_head_scale", seeded(ordinary.ScaledHeads), tokens_in, NOTHING, "[H, 1]"),
    ZooModel("channel_gate", seeded(ordinary.ChannelGated), tokens_in, NOTHING, "[B, S, H*D]"),
    ZooModel(
        "moe_loop", seeded(ordinary.dense_beside_experts), tokens_in, NOTHING, "experts in a loop"
    ),
    ZooModel(
        "moe_einsum",
        seeded(ordinary.dense_beside_stacked_experts),
        tokens_in,
        NOTHING,
        "experts on an axis that looks like heads",
    ),
    ZooModel("squeeze_excite", seeded(ordinary.SqueezeExcite), published.images_in, NOTHING, "CNN"),
    ZooModel("ada_ln", seeded(ordinary.Conditioned), tokens_in, NOTHING, "gates per channel"),
)

AGGREGATED = (
    ZooModel(
        "windowed_pooled",
        seeded(windowed.FocusAttention),
        windowed.pixels_in,
        Expected((aggregated(),)),
        "3x3 window and pooled map in one softmax",
    ),
    ZooModel(
        "pyramid",
        seeded(windowed.Pyramid),
        windowed.pictures_in,
        Expected((aggregated(), ExpectedLayer(6, 6, 4, 0, "top_k"))),
        "a windowed stage, then full cosine attention",
    ),
    *(
        ZooModel(name, seeded(make), inputs, top_k(4, 2), (make.__doc__ or "").strip())
        for name, make, inputs in (
            ("window_slices", otherwise.SlicesOfPadded, otherwise.thirty_in),
            ("window_gathered", otherwise.GatheredByNumber, otherwise.thirty_in),
            ("window_by_columns", otherwise.TapsColumnByColumn, otherwise.thirty_in),
            ("window_unit_last", otherwise.NormalisedAsWindows, otherwise.twenty_eight_in),
            ("window_tap_by_tap", otherwise.TapByTap, otherwise.thirty_in),
            ("window_maps", otherwise.FeatureMaps, otherwise.thirty_in),
        )
    ),
)

COMPOSED = (
    ZooModel(
        "two_attentions",
        seeded(composed.TwoAttentions),
        composed.two_sequences_in,
        Expected((MIXER,)),
        "only the first of two attentions chooses heads",
    ),
    ZooModel(
        "encoder_decoder",
        seeded(composed.Translator),
        composed.pair_in,
        Expected((MIXER, two_stage(4, 1, 2), MIXER, two_stage(8, 2, 3))),
        "self and cross attention choose heads; two sequence lengths",
    ),
    ZooModel(
        "nested_outputs",
        seeded(composed.ManyAnswers),
        composed.ids_in,
        Expected((MIXER, MIXER)),
        "dict of tensor, int tensor, tuple and dict; int and bool inputs",
    ),
    ZooModel(
        "run_twice",
        seeded(composed.Recurrent),
        tokens_in,
        Expected((MIXER, MIXER)),
        "one module called twice is two layers of the graph",
    ),
    ZooModel(
        "left_in_training",
        seeded(composed.Encoder, training=True),
        tokens_in,
        Expected((MIXER, MIXER)),
        "dropout is active when it is saved",
    ),
    ZooModel(
        "heads_and_experts",
        seeded(composed.HalfAndHalf),
        tokens_in,
        Expected((MIXER, two_stage(4, 1, 1))),
        "two MoH layers among three blocks with experts",
    ),
)

ZOO: tuple[ZooModel, ...] = (
    *PUBLISHED,
    *CORES,
    *GATES,
    *SELECTION,
    *ORDINARY,
    *AGGREGATED,
    *COMPOSED,
    *RARE,
)
