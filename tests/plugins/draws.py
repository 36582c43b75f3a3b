"""Hypothesis strategies for setups: sizes near those where a kernel takes another way."""

from dataclasses import replace

from hypothesis import strategies as st

from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.attention_setups import GATE_PATTERNS, PATTERNS, AttentionSetup, MaskSetup
from tests.plugins.nbits_projection_setups import NBitsProjectionSetup
from tests.plugins.projection_setups import GATE_PATTERNS as PROJECTION_GATE_PATTERNS
from tests.plugins.projection_setups import ProjectionSetup
from tests.plugins.router_setups import LOGITS, RouterSetup
from tests.plugins.token_conv_setups import TokenConvSetup

# Vectors have 4, 8 or 16 lanes, tiles 2 or 3 vectors, tasks 32 tiles; blocks end at 256 keys.
LENGTHS = st.one_of(
    st.integers(1, 20),
    st.integers(1, 300),
    st.sampled_from([15, 16, 17, 32, 47, 48, 49, 96, 97, 255, 256, 257, 385, 512, 513, 600]),
)
HEAD_DIMS = st.one_of(st.integers(1, 140), st.sampled_from([16, 24, 32, 64, 72, 128]))
MOST_PRODUCTS = 20_000_000


@st.composite
def masks(draw: st.DrawFn) -> MaskSetup:
    rank = draw(st.integers(1, 4))
    pattern = draw(st.sampled_from(sorted(PATTERNS)))
    axes = tuple(axis >= 4 - rank and draw(st.booleans()) for axis in range(3))
    has_keys = pattern == "lowest" or draw(st.sampled_from([True, True, True, False]))
    dtype = draw(st.sampled_from(["bool", *FLOAT_TYPES]))
    return MaskSetup(dtype, (*axes, has_keys), rank, pattern)


@st.composite
def attention_setups(draw: st.DrawFn, most_products: int = MOST_PRODUCTS) -> AttentionSetup:
    head_dim = draw(HEAD_DIMS)
    setup = AttentionSetup(
        batch=draw(st.integers(1, 2)),
        seq_len=draw(LENGTHS),
        kv_len=draw(LENGTHS),
        kv_num_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 1, 2, 3, 4])),
        head_dim=head_dim,
        value_dim=draw(st.one_of(st.just(head_dim), HEAD_DIMS)),
        rank=draw(st.sampled_from([3, 4])),
        is_causal=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 1.0, 0.1, 4.0, -1.0])),
        dtype=draw(st.sampled_from(FLOAT_TYPES)),
        gates=draw(st.sampled_from(GATE_PATTERNS)),
        mask=draw(st.none() | masks()),
        filled=draw(st.booleans()),
    )
    return _affordable(setup, most_products)


def _affordable(setup: AttentionSetup, most_products: int) -> AttentionSetup:
    """The same with fewer heads, then fewer queries: the reference is slow."""
    if setup.products > most_products:
        setup = replace(setup, batch=1, kv_num_heads=1, group=min(setup.group, 2))
    if setup.products > most_products:
        setup = replace(setup, seq_len=max(1, setup.seq_len * most_products // setup.products))
    return setup


@st.composite
def aggregated_attention_setups(
    draw: st.DrawFn, most_products: int = 2_000_000
) -> AggregatedAttentionSetup:
    kernels = st.one_of(st.just(3), st.sampled_from([1, 3, 5, 7]))
    optional = draw(st.sampled_from([OPTIONAL, ()]) | st.sets(st.sampled_from(OPTIONAL)))
    setup = AggregatedAttentionSetup(
        batch=draw(st.integers(1, 2)),
        num_heads=draw(st.integers(1, 4)),
        head_dim=draw(st.one_of(st.integers(1, 70), st.sampled_from([16, 24, 32, 48]))),
        height=draw(st.one_of(st.integers(1, 9), st.integers(1, 40))),
        width=draw(st.one_of(st.integers(1, 9), st.integers(1, 70))),
        kernel_height=draw(kernels),
        kernel_width=draw(kernels),
        pooled=draw(st.one_of(st.integers(1, 10), st.sampled_from([16, 49, 64, 100]))),
        normalize=draw(st.booleans()),
        optional=tuple(name for name in OPTIONAL if name in optional),
        gates=draw(st.sampled_from(GATE_PATTERNS)),
        dtype=draw(st.sampled_from(FLOAT_TYPES)),
    )
    if setup.products > most_products:
        setup = replace(setup, batch=1, num_heads=1)
    rows = max(1, setup.height * most_products // setup.products)
    return replace(setup, height=min(setup.height, rows))


@st.composite
def projection_setups(draw: st.DrawFn, most_products: int = MOST_PRODUCTS) -> ProjectionSetup:
    # Blocks of tokens end at 96, parts of a sum at 128.
    setup = ProjectionSetup(
        op=draw(st.sampled_from(["MoHQueryProjection", "MoHOutputProjection"])),
        batch=draw(st.integers(1, 3)),
        seq_len=draw(st.one_of(st.integers(1, 20), st.integers(1, 200))),
        num_heads=draw(st.integers(1, 9)),
        head_dim=draw(st.one_of(HEAD_DIMS, st.sampled_from([4, 8, 12, 24, 48]))),
        width=draw(st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 192, 257]))),
        biased=draw(st.booleans()),
        gates=draw(st.sampled_from(PROJECTION_GATE_PATTERNS)),
        dtype=draw(st.sampled_from(FLOAT_TYPES)),
    )
    if setup.products > most_products:
        setup = replace(setup, batch=1)
    if setup.products > most_products:
        setup = replace(setup, seq_len=max(1, setup.seq_len * most_products // setup.products))
    return setup


def nbits_projection_setups(
    most_products: int = MOST_PRODUCTS,
) -> st.SearchStrategy[NBitsProjectionSetup]:
    setups = projection_setups(most_products=most_products)
    return setups.map(lambda setup: NBitsProjectionSetup(**vars(setup)))


@st.composite
def router_setups(draw: st.DrawFn) -> RouterSetup:
    num_routed = draw(st.one_of(st.integers(0, 70), st.integers(1, 9)))
    num_shared = draw(st.integers(0 if num_routed else 1, 5))
    mask = num_routed > 0 and draw(st.booleans())
    staged = not mask and draw(st.booleans())
    shared_logits = num_shared > 0 and not mask and (draw(st.booleans()) or not num_routed)
    return RouterSetup(
        batch=draw(st.integers(1, 3)),
        seq_len=draw(st.one_of(st.integers(1, 10), st.sampled_from([63, 64, 65, 130]))),
        num_routed=num_routed,
        top_k=draw(st.integers(1, num_routed)) if num_routed else 0,
        num_shared=num_shared,
        shared_logits=shared_logits,
        staged=staged,
        gate_mode="mask" if mask else "weighted",
        dtype=draw(st.sampled_from(FLOAT_TYPES)),
        logits=draw(st.sampled_from(sorted(LOGITS))),
    )


@st.composite
def token_conv_setups(draw: st.DrawFn, most_products: int = 20_000) -> TokenConvSetup:
    kernels = st.one_of(st.just(3), st.sampled_from([1, 3, 5, 7]))
    # Kernels take four pixels at once, and rows four a task.
    setup = TokenConvSetup(
        batch=draw(st.integers(1, 3)),
        height=draw(st.integers(1, 14)),
        width=draw(st.integers(1, 14)),
        channels=draw(st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64, 128]))),
        kernel_height=draw(kernels),
        kernel_width=draw(kernels),
        bias=draw(st.booleans()),
        input_bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["none", "gelu"])),
        gated=draw(st.booleans()),
        dtype=draw(st.sampled_from(FLOAT_TYPES)),
        size=draw(st.sampled_from([1.0, 1.0, 20.0])),
    )
    return replace(setup, batch=1) if setup.products > most_products else setup
