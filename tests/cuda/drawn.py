"""Cases that no table lists: drawn once and the same in every run."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES, Arrays
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.draws import (
    aggregated_attention_setups,
    attention_setups,
    router_setups,
)

MOST_PRODUCTS = 1_000_000
"""Of a case: the emulator needs about a second for as many."""

_STRATEGIES: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "MoHRouter": router_setups,
    "MoHAttention": lambda: attention_setups(most_products=MOST_PRODUCTS),
    "MoHAggregatedAttention": lambda: aggregated_attention_setups(most_products=MOST_PRODUCTS),
}

_TILES = AttentionSetup(seq_len=150, kv_len=140, kv_num_heads=1, head_dim=24, value_dim=24)
_SEVERAL_TILES = (
    _TILES,  # rows and keys of several tiles, the last ones not full
    replace(_TILES, gates="all", is_causal=True),
    replace(_TILES, group=3, seq_len=50, gates="few"),  # rows of a tile from several heads
    replace(_TILES, mask=MaskSetup(pattern="blocks"), rank=4),
    replace(_TILES, head_dim=64, value_dim=40, mask=MaskSetup("float32", pattern="window")),
    replace(_TILES, seq_len=1, group=4, kv_len=300, head_dim=128, value_dim=128),
    replace(_TILES, seq_len=70, kv_len=70, head_dim=72, value_dim=72),
    replace(_TILES, seq_len=66, kv_len=70, head_dim=160, value_dim=192),
    replace(_TILES, seq_len=66, kv_len=40, head_dim=256, value_dim=256, is_causal=True),
    replace(_TILES, seq_len=20, kv_len=20, value_dim=40),  # values need a larger tile than queries
    replace(_TILES, seq_len=5, kv_len=193),  # a key more than three tiles, which are three splits
    # Padding, with tiles of keys that no query sees, more than are looked up at once.
    replace(
        _TILES,
        batch=2,
        seq_len=40,
        kv_len=1100,
        is_causal=True,
        mask=MaskSetup(axes=(True, False, False, True), rank=4, pattern="no_first_keys"),
    ),
    replace(_TILES, seq_len=9, kv_len=2500, mask=MaskSetup(rank=1, pattern="blocks")),
    replace(
        _TILES, seq_len=9, kv_len=1100, mask=MaskSetup("float32", rank=1, pattern="no_last_keys")
    ),
    replace(
        _TILES,
        batch=2,
        kv_len=150,
        is_causal=True,
        mask=MaskSetup(axes=(True, False, False, True), rank=4, pattern="no_first_keys"),
    ),
    # The same by masks for queries and heads.
    replace(
        _TILES,
        batch=2,
        kv_num_heads=2,
        group=3,
        seq_len=40,
        kv_len=300,
        mask=MaskSetup(axes=(True, True, True, True), rank=4, pattern="no_first_keys"),
    ),
    replace(_TILES, seq_len=200, kv_len=200, mask=MaskSetup(pattern="window")),
    replace(_TILES, seq_len=40, kv_len=256, mask=MaskSetup(pattern="all")),
    replace(
        _TILES,
        batch=5,
        seq_len=9,
        kv_len=300,
        mask=MaskSetup(axes=(True, False, True, True), rank=4, pattern="no_last_keys"),
    ),
    # More rows than are listed at once, and by a thread at once.
    replace(_TILES, seq_len=4200, kv_len=3, head_dim=4, value_dim=4),
)


@cache
def drawn_cases(op: str, count: int) -> tuple[Case, ...]:
    """Return `count` cases of an op, among sizes near those where a kernel takes another way."""
    cases: list[Case] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_STRATEGIES[op]())
    def draw(setup: Any) -> None:
        cases.append(setup.case())

    draw()
    return tuple(cases)


def cases_of_several_tiles() -> tuple[Case, ...]:
    """Return attention that fills several tiles of rows and of keys, for each head size."""
    cases = [
        replace(setup, dtype=dtype).case() for setup in _SEVERAL_TILES for dtype in FLOAT_TYPES
    ]
    others = (_of_nothing_but_the_lowest_bias, _of_two_documents)
    return (*cases, *(of(dtype) for of in others for dtype in FLOAT_TYPES))


def _of_nothing_but_the_lowest_bias(dtype: str) -> Case:
    """Beside it every score is rounded away: all keys weigh the same."""
    setup = replace(_TILES, seq_len=7, kv_len=70, mask=MaskSetup("float32"), dtype=dtype)
    case = setup.case()

    def build(rng: np.random.Generator) -> Arrays:
        *others, mask = case.build(rng)
        assert mask is not None
        return (*others, np.full_like(mask, np.finfo(np.float32).min))

    return replace(case, name="lowest_bias", build=build)


def _of_two_documents(dtype: str) -> Case:
    """Rows of a block see one document or another, and two rows see nothing.

    Of the rows that a lane looks up for its block, only the first sees the first document. The rows
    that see nothing share a warp with rows that see whole tiles.
    """
    setup = replace(_TILES, seq_len=70, kv_len=300, gates="all", dtype=dtype)
    ranges = np.zeros((1, 70, 2), np.int64)
    ranges[:, :32], ranges[:, 32:], ranges[:, 66:68] = (0, 128), (128, 300), 0
    case = setup.case()

    def build(rng: np.random.Generator) -> Arrays:
        return (*case.build(rng), None, None, ranges)

    return replace(case, name="ranges_two_documents", build=build)
