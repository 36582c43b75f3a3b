"""MoHAttention on the CPU kernels, for sizes, masks and gates that no table lists."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import in_turn, sampled
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.draws import attention_setups
from tests.plugins.kernels import Kernels, assert_right


@sampled(3)
@given(setup=attention_setups())
def test_any_attention_agrees_with_the_reference(kernels: Kernels, setup: AttentionSetup):
    case = setup.case()
    assert_right(case, kernels.run(case))


# What the draws may miss: many tiles and tasks, many blocks, rows that are read in place or not.
_LARGE = AttentionSetup(batch=2, seq_len=700, kv_len=700, kv_num_heads=4, head_dim=72, value_dim=72)
LARGE = {
    "many_tasks": _LARGE,
    "many_tasks_rank4": replace(_LARGE, rank=4, gates="all"),
    "grouped_causal": AttentionSetup(
        seq_len=512, kv_len=512, kv_num_heads=2, group=4, head_dim=64, value_dim=64, is_causal=True
    ),
    "causal_with_past": replace(_LARGE, batch=1, seq_len=300, kv_len=1100, is_causal=True),
    "causal_more_queries_than_keys": replace(_LARGE, batch=1, kv_len=500, is_causal=True),
    "causal_masked": replace(_LARGE, batch=1, is_causal=True, mask=MaskSetup("float32")),
    "padded_on_the_left": replace(
        _LARGE, mask=MaskSetup("bool", (True, False, False, True), 4, "no_first_keys")
    ),
    "blocks_that_nobody_sees": replace(
        _LARGE, mask=MaskSetup("float32", (False, False, True, True), 4, "blocks")
    ),
    "rows_a_page_apart": AttentionSetup(
        seq_len=60, kv_len=300, kv_num_heads=8, head_dim=128, value_dim=128
    ),
    "only_values_a_page_apart": AttentionSetup(
        seq_len=60, kv_len=300, kv_num_heads=8, head_dim=20, value_dim=128
    ),
    "only_keys_a_page_apart": AttentionSetup(
        seq_len=60, kv_len=300, kv_num_heads=8, head_dim=128, value_dim=20
    ),
    "page_sized_heads": AttentionSetup(
        seq_len=60, kv_len=270, head_dim=1024, value_dim=1024, rank=4, scale=0.5
    ),
    "decode": AttentionSetup(
        batch=2, seq_len=1, kv_len=2100, kv_num_heads=8, head_dim=64, value_dim=64
    ),
    "decode_grouped": AttentionSetup(
        seq_len=1, kv_len=2100, kv_num_heads=2, group=4, head_dim=128, value_dim=128, gates="all"
    ),
    "decode_large_groups": AttentionSetup(
        seq_len=1, kv_len=1000, kv_num_heads=2, group=16, head_dim=64, value_dim=64
    ),
    "filled_causal": replace(_LARGE, seq_len=300, kv_len=1100, is_causal=True, filled=True),
    "filled": replace(_LARGE, batch=3, seq_len=60, kv_len=600, filled=True),
    "decode_filled": AttentionSetup(
        batch=3,
        seq_len=1,
        kv_len=2100,
        kv_num_heads=2,
        group=4,
        head_dim=64,
        value_dim=64,
        is_causal=True,
        rank=4,
        filled=True,
    ),
    "decode_masked": AttentionSetup(
        batch=2,
        seq_len=1,
        kv_len=1000,
        kv_num_heads=2,
        group=2,
        head_dim=64,
        value_dim=64,
        mask=MaskSetup("bool", (True, False, False, True), 4, "no_first_keys"),
    ),
}


@sampled(16)
@pytest.mark.parametrize(("name", "dtype"), in_turn(LARGE, FLOAT_TYPES))
def test_large_attention_agrees_with_the_reference(kernels: Kernels, name: str, dtype: str):
    case = replace(LARGE[name], dtype=dtype).case()
    assert_right(case, kernels.run(case))


# Beside the cases of the contract that are empty.
_ODD = AttentionSetup(seq_len=7, kv_len=5, value_dim=3, dtype="float16")
EMPTY = {
    "batch": replace(_ODD, batch=0, group=3, is_causal=True),
    "queries": replace(_ODD, seq_len=0, group=2, is_causal=True, dtype="float32"),
    "keys_many_rows": replace(_ODD, kv_len=0, seq_len=90, gates="all", dtype="float32"),
    "keys_grouped": replace(_ODD, kv_len=0, group=2, gates="nan"),
    "keys_filled": replace(_ODD, kv_len=0, batch=2, group=2, is_causal=True, filled=True),
    "everything": replace(_ODD, batch=0, seq_len=0, kv_len=0),
}


@sampled(4)
@pytest.mark.parametrize("name", EMPTY)
def test_attention_of_nothing_agrees_with_the_reference(kernels: Kernels, name: str):
    case = EMPTY[name].case()
    assert_right(case, kernels.run(case))


@sampled(4)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 9, 16, 17])
def test_few_and_many_rows_of_a_key_value_head_agree_with_the_reference(
    kernels: Kernels, group: int
):
    """Up to half a vector of rows have features in lanes, more have rows in lanes."""
    setup = AttentionSetup(seq_len=1, kv_len=300, group=group, head_dim=37, gates="all")
    case = setup.case()
    assert_right(case, kernels.run(case))


@pytest.mark.parametrize("seq_len", [1, 40])
def test_rows_of_nothing_but_the_lowest_number_are_an_ordinary_softmax(
    kernels: Kernels, seq_len: int
):
    """Beside it every score is rounded away: all keys weigh the same."""
    mask = MaskSetup("float32", (False, False, False, True), 1, "lowest")
    case = AttentionSetup(seq_len=seq_len, kv_len=300, gates="all", mask=mask, rank=4).case()
    query, key, value, gates, bias = case.inputs()
    bias[:] = np.finfo(np.float32).min
    lowest = replace(case, build=lambda rng: (query, key, value, gates, bias))
    assert_right(lowest, kernels.run(lowest))


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("seq_len", [1, 40])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_nothing_comes_through_a_closed_gate(
    kernels: Kernels, zero: float, seq_len: int, dtype: str
):
    case = AttentionSetup(seq_len=seq_len, rank=4, dtype=dtype, group=4).case()
    query, key, value, gates = case.inputs()
    gates[gates == 0] = zero
    query[gates.transpose(0, 2, 1) == 0] = np.nan
    behind = replace(case, build=lambda rng: (query, key, value, gates))
    assert_right(behind, kernels.run(behind))


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("seq_len", [1, 40])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_cache_with_room_gives_the_bits_of_one_that_is_full(
    kernels: Kernels, seq_len: int, dtype: str, is_causal: bool
):
    """Whatever the room: blocks of keys, too, are those of the filled length."""
    setup = AttentionSetup(
        seq_len=seq_len, kv_len=700, group=2, rank=4, dtype=dtype, is_causal=is_causal
    )
    case = setup.case()
    query, key, value, gates = case.inputs()
    full = replace(case, build=lambda rng: (query, key[:, :, :300], value[:, :, :300], gates))
    lengths = np.array([300])
    room = replace(case, build=lambda rng: (query, key, value, gates, None, lengths))
    assert kernels.run(room)[0].tobytes() == kernels.run(full)[0].tobytes()
