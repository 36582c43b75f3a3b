from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.perf.cost_model.milliseconds import LayerShape

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
