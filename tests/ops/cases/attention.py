"""The cases of MoHAttention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.ops.cases.edits import Edit, in_order, put, times
from tests.ops.cases.in_every_dtype import in_every_dtype

MaskMaker = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class _Setup:
    """Sizes and options of a case; the defaults are small, odd, and fit no vector width."""

    batch: int = 2
    seq_len: int = 7
    kv_len: int = 7
    q_num_heads: int = 3
    kv_num_heads: int = 3
    head_dim: int = 5
    value_dim: int = 5
    rank: Literal[3, 4] = 3
    is_causal: bool = False
    scale: float | None = None
    open_share: float = 0.6
    mask: MaskMaker | None = None
    filled: tuple[int, ...] | None = None
    ranges: MaskMaker | None = None
    edit: Edit | None = None  # of Q, K, V [B, H, S, D], gates [B, S, H] or attn_mask
    score_bound: float = 8.0

    def case(self, name: str, why: str) -> Case:
        attributes = {
            "q_num_heads": self.q_num_heads,
            "kv_num_heads": self.kv_num_heads,
            "scale": self.head_dim**-0.5 if self.scale is None else self.scale,
            "is_causal": int(self.is_causal),
        }
        return Case(name, "MoHAttention", why, attributes, self.build, score_bound=self.score_bound)

    def build(self, rng: np.random.Generator) -> Arrays:
        queries = (self.batch, self.q_num_heads, self.seq_len)
        keys = (self.batch, self.kv_num_heads, self.kv_len)
        values: dict[str, np.ndarray | None] = {
            "Q": rng.standard_normal((*queries, self.head_dim)),
            "K": rng.standard_normal((*keys, self.head_dim)),
            "V": rng.standard_normal((*keys, self.value_dim)),
            "gates": self._gates(rng),
        }
        optional = (self.mask, self.filled, self.ranges)
        if any(given is not None for given in optional):
            values["attn_mask"] = None if self.mask is None else self.mask(rng)
        if self.ranges is not None:
            values["nonpad_kv_seqlen"] = None
            values["key_ranges"] = self.ranges(rng)
        if self.filled is not None:
            values["nonpad_kv_seqlen"] = np.array(self.filled, np.int64)
            for batch, filled in enumerate(self.filled):
                # A cache has room for more: nothing may read what is there.
                values["K"][batch, :, filled:] = values["V"][batch, :, filled:] = np.nan
        if self.edit is not None:
            self.edit(values)
        if self.rank == 3:
            values |= {name: _without_head_axis(values[name]) for name in ("Q", "K", "V")}
        return tuple(_narrow(array) for array in values.values())

    def _gates(self, rng: np.random.Generator) -> np.ndarray:
        shape = (self.batch, self.seq_len, self.q_num_heads)
        gates: np.ndarray = np.where(
            rng.random(shape) < self.open_share, rng.uniform(0.25, 2.0, shape), 0.0
        )
        return gates


def _without_head_axis(array: np.ndarray) -> np.ndarray:
    batch, num_heads, length, head_dim = array.shape
    merged: np.ndarray = array.transpose(0, 2, 1, 3).reshape(batch, length, num_heads * head_dim)
    return merged


def _narrow(array: np.ndarray | None) -> np.ndarray | None:
    return array if array is None or array.dtype.kind != "f" else array.astype(np.float32)


def _bool_mask(*shape: int) -> MaskMaker:
    """A mask that hides a third of the keys, though never the first."""

    def make(rng: np.random.Generator) -> np.ndarray:
        mask = rng.random(shape) < 0.67
        mask[..., 0] = True
        return mask

    return make


def _window(seq_len: int, kv_len: int, left: int, right: int) -> MaskMaker:
    """Ranges of `left` keys before a query's own and `right` behind it; they leave the keys."""

    def make(rng: np.random.Generator) -> np.ndarray:
        position = np.arange(seq_len) + kv_len - seq_len
        return np.stack([position - left, position + right + 1], axis=-1)[None]

    return make


def _documents(seq_len: int, *lengths: tuple[int, ...]) -> MaskMaker:
    """Ranges of documents behind each other; a query behind the last sees none."""

    def make(rng: np.random.Generator) -> np.ndarray:
        ranges = np.zeros((len(lengths), seq_len, 2), np.int64)
        for row, own in zip(ranges, lengths, strict=True):
            ends = np.cumsum(own)
            for first, end in zip(ends - own, ends, strict=True):
                row[first:end] = first, end
        return ranges

    return make


def _additive_mask(*shape: int) -> MaskMaker:
    """A bias of order 1, with -inf for a fifth of the keys, though never for the first."""

    def make(rng: np.random.Generator) -> np.ndarray:
        bias = rng.standard_normal(shape)
        hidden = rng.random(shape) < 0.2
        hidden[..., 0] = False
        return np.where(hidden, -np.inf, bias)

    return make


def _blind_rows(*shape: int) -> MaskMaker:
    """A boolean mask whose first and last query see no key."""

    def make(rng: np.random.Generator) -> np.ndarray:
        mask = _bool_mask(*shape)(rng)
        mask[..., (0, -1), :] = False
        return mask

    return make


def _blind_rows_additive(*shape: int) -> MaskMaker:
    def make(rng: np.random.Generator) -> np.ndarray:
        return np.where(_blind_rows(*shape)(rng), 0.5, -np.inf)

    return make


def _finite_minimum(rng: np.random.Generator) -> np.ndarray:
    """Padding as many models write it: a large negative number instead of -inf."""
    return np.where(_bool_mask(2, 1, 1, 7)(rng), 0.0, -30000.0)


def _no_keys(_: np.random.Generator) -> np.ndarray:
    return np.zeros((7, 0))


def _nan_bias(rng: np.random.Generator) -> np.ndarray:
    """NaN among zeros, and as all that a run of hidden keys has to show."""
    bias = np.zeros((37, 37))
    bias[:, 16:32] = -np.inf
    bias[5, 20] = bias[9, 3] = np.nan
    return bias


def _nan_bias_behind(_: np.random.Generator) -> np.ndarray:
    return np.array([0.5, -1.0, 0.0, 2.0, 1.0, -np.inf, np.nan])


# Closes head 1 for every token of batch 0, and head 0 for token 2 of batch 1.
_CLOSED = in_order(put("gates", np.s_[0, :, 1], 0.0), put("gates", np.s_[1, 2, 0], 0.0))
_NAN_QUERY = in_order(_CLOSED, put("Q", np.s_[0, 1], np.nan), put("Q", np.s_[1, 0, 2], np.nan))
_INF_QUERY = in_order(
    _CLOSED, put("Q", np.s_[0, 1], np.inf), put("Q", np.s_[1, 0, 2, :2], (np.inf, -np.inf))
)
_NAN_KEY = in_order(_CLOSED, put("K", np.s_[0, 1, 3], np.nan), put("K", np.s_[0, 1, 5], np.inf))
_NAN_VALUE = in_order(_CLOSED, put("V", np.s_[0, 1, 0], np.nan), put("V", np.s_[0, 1, 4], -np.inf))
_NAN_QUERY_OPEN = in_order(put("gates", np.s_[0, 3, 2], 1.0), put("Q", np.s_[0, 2, 3, 1], np.nan))
_INF_VALUE_OPEN = in_order(put("gates", np.s_[0, :, 2], 1.0), put("V", np.s_[0, 2, 3, 1], np.inf))
_NAN_QUERY_BLIND = in_order(put("gates", np.s_[:, 0], 1.0), put("Q", np.s_[:, :, 0, 1], np.nan))
_NAN_GATE = put("gates", np.s_[1, 4, 0], np.nan)
_NAN_GATE_OF_BLIND_QUERY = put("gates", np.s_[:, 0, 0], np.nan)
_NEGATIVE_GATES = times("gates", -1.0)  # closed gates become -0.0
_LARGE_SCORES = in_order(times("Q", 12.0), times("K", 12.0))
_VERY_NEGATIVE_SCORES = in_order(put("Q", np.s_[..., 0], 20.0), put("K", np.s_[..., 0], -20.0))
_ONLY_LAST_QUERY_OPEN = in_order(put("gates", np.s_[:, :-1], 0.0), put("gates", np.s_[:, -1], 1.5))


def _inf_query_open(values: dict[str, np.ndarray]) -> None:
    """Every score of the query is -inf, though it sees every key."""
    values["gates"][0, 3, 2] = 1.0
    values["Q"][0, 2, 3, 1] = np.inf
    values["K"][0, 2, :, 1] = -1.0 - values["K"][0, 2, :, 1] ** 2


def _inf_key_open(values: dict[str, np.ndarray]) -> None:
    """The key's score is -inf for every query of the head."""
    values["gates"][0, :, 2] = 1.0
    values["K"][0, 2, 3, 1] = np.inf
    values["Q"][0, 2, :, 1] = -1.0 - values["Q"][0, 2, :, 1] ** 2


def _equal_keys(values: dict[str, np.ndarray]) -> None:
    values["K"][:] = values["K"][:, :, :1]


_TABLE: Mapping[str, tuple[str, _Setup]] = {
    "plain_rank3": ("The ordinary case, as a projection yields it.", _Setup()),
    "plain_rank4": ("Heads in front of tokens.", _Setup(rank=4)),
    "all_open": ("Gates of all heads are open.", _Setup(open_share=1.1)),
    "all_closed": ("Every row is exactly 0.", _Setup(open_share=-1.0)),
    "negative_gates": (
        "A gate may be negative; -0.0 is closed.",
        _Setup(edit=_NEGATIVE_GATES),
    ),
    "single_everything": (
        "One batch, token, key, head, channel.",
        _Setup(
            open_share=1.1,
            batch=1,
            seq_len=1,
            kv_len=1,
            q_num_heads=1,
            kv_num_heads=1,
            head_dim=1,
            value_dim=1,
        ),
    ),
    "odd_sizes": (
        "Sizes that no vector width divides.",
        _Setup(
            batch=3, seq_len=37, kv_len=37, q_num_heads=7, kv_num_heads=7, head_dim=3, value_dim=3
        ),
    ),
    "many_keys": (
        "More keys than a tile of any kernel.",
        _Setup(
            batch=1, seq_len=3, kv_len=301, q_num_heads=2, kv_num_heads=2, head_dim=24, value_dim=24
        ),
    ),
    "wide_heads": (
        "Head size beyond 64, and no multiple of 8.",
        _Setup(batch=1, head_dim=139, value_dim=139, q_num_heads=2, kv_num_heads=2),
    ),
    "sparse_routing": (
        "Some heads are chosen by nobody, some by one token.",
        _Setup(batch=1, seq_len=37, kv_len=37, q_num_heads=16, kv_num_heads=16, open_share=0.04),
    ),
    "one_query": ("Decoding: one query, many keys.", _Setup(seq_len=1, kv_len=37)),
    "cross_attention": ("Keys of another length.", _Setup(seq_len=7, kv_len=13)),
    "cross_attention_rank4": ("The same by heads.", _Setup(seq_len=13, kv_len=3, rank=4)),
    "wide_values": ("V has a head size of its own.", _Setup(value_dim=9)),
    "narrow_values_rank4": ("The same by heads.", _Setup(value_dim=2, rank=4)),
    "custom_scale": ("The scale is read from the attribute.", _Setup(scale=0.25)),
    "equal_keys": ("All scores of a row are equal.", _Setup(edit=_equal_keys)),
    "large_scores": (
        "Scores of several hundred: exp overflows unless the row maximum is taken off first.",
        _Setup(edit=_LARGE_SCORES, score_bound=1000.0),
    ),
    "very_negative_scores": (
        "Scores far below 0: every weight underflows unless the row maximum is taken off first.",
        _Setup(edit=_VERY_NEGATIVE_SCORES, score_bound=200.0),
    ),
    "negative_scale": (
        "The largest product has the smallest weight.",
        _Setup(kv_len=131, edit=_LARGE_SCORES, scale=-(5**-0.5), score_bound=1000.0),
    ),
    "one_open_query": (
        "Of many queries, the last alone chose the heads.",
        _Setup(seq_len=37, edit=_ONLY_LAST_QUERY_OPEN),
    ),
    "grouped": (
        "Query head h reads key/value head h // (Hq / Hkv).",
        _Setup(q_num_heads=6, kv_num_heads=2),
    ),
    "grouped_rank4": ("The same by heads.", _Setup(q_num_heads=6, kv_num_heads=3, rank=4)),
    "multi_query": (
        "One key/value head, and values of another size.",
        _Setup(q_num_heads=3, kv_num_heads=1, value_dim=4, kv_len=11),
    ),
    "causal": ("No query sees a later key.", _Setup(is_causal=True)),
    "causal_rank4": ("The same by heads.", _Setup(is_causal=True, rank=4)),
    "causal_more_keys": (
        "With a cache, query s sits at s + T - S.",
        _Setup(is_causal=True, seq_len=3, kv_len=11),
    ),
    "causal_one_query": (
        "The last query sees every key.",
        _Setup(is_causal=True, seq_len=1, kv_len=11, rank=4),
    ),
    "causal_fewer_keys": (
        "With T < S the first queries see nothing and give 0.",
        _Setup(is_causal=True, seq_len=11, kv_len=5),
    ),
    "causal_grouped": (
        "The form of a decoder with grouped heads.",
        _Setup(is_causal=True, q_num_heads=6, kv_num_heads=2, seq_len=5, kv_len=9),
    ),
    "bool_mask_rank1": ("[T].", _Setup(mask=_bool_mask(7))),
    "bool_mask_rank2": ("[S, T].", _Setup(mask=_bool_mask(7, 7))),
    "bool_mask_rank3": ("[Hq, S, T].", _Setup(mask=_bool_mask(3, 7, 7))),
    "bool_mask_rank4": ("[B, 1, 1, T]: key padding.", _Setup(mask=_bool_mask(2, 1, 1, 7))),
    "bool_mask_one_key": (
        "[S, 1]: a query sees all keys, or none.",
        _Setup(mask=lambda rng: rng.random((7, 1)) < 0.67),
    ),
    "bool_mask_by_head": ("[B, Hq, S, T].", _Setup(mask=_bool_mask(2, 3, 7, 7), rank=4)),
    "bool_mask_grouped": (
        "A mask by query head with grouped key/value heads.",
        _Setup(q_num_heads=6, kv_num_heads=2, mask=_bool_mask(2, 6, 7, 7)),
    ),
    "bool_mask_causal": (
        "Both masks hide.",
        _Setup(is_causal=True, kv_len=9, mask=_bool_mask(2, 1, 7, 9)),
    ),
    "additive_mask_rank2": ("[S, T].", _Setup(mask=_additive_mask(7, 7))),
    "additive_mask_rank3": ("[Hq, 1, T].", _Setup(mask=_additive_mask(3, 1, 7))),
    "additive_mask_rank4": ("[B, Hq, S, T].", _Setup(mask=_additive_mask(2, 3, 7, 7))),
    "additive_mask_grouped": (
        "A bias by query head with grouped key/value heads.",
        _Setup(q_num_heads=4, kv_num_heads=2, mask=_additive_mask(1, 4, 7, 7), rank=4),
    ),
    "additive_mask_causal": (
        "A bias on what the causal mask leaves.",
        _Setup(is_causal=True, seq_len=5, kv_len=7, mask=_additive_mask(5, 7)),
    ),
    "additive_mask_finite": (
        "A large negative bias hides a key as -inf does.",
        _Setup(mask=_finite_minimum, score_bound=64.0),
    ),
    "nan_bias": (
        "A NaN bias gives NaN, wherever it stands.",
        _Setup(batch=1, seq_len=37, kv_len=37, open_share=1.1, mask=_nan_bias),
    ),
    "blind_queries": (
        "A query that sees no key gives 0, not NaN.",
        _Setup(mask=_blind_rows(2, 1, 7, 7)),
    ),
    "blind_queries_additive": ("The same with -inf.", _Setup(mask=_blind_rows_additive(7, 7))),
    "blind_queries_causal": (
        "The same where only both masks together hide every key.",
        _Setup(
            is_causal=True, mask=lambda rng: np.tri(7, k=-2, dtype=bool) | np.tri(7, dtype=bool).T
        ),
    ),
    "blind_queries_grouped": (
        "The same with grouped heads.",
        _Setup(q_num_heads=4, kv_num_heads=2, mask=_blind_rows(2, 4, 7, 7), rank=4),
    ),
    "nan_query_closed": ("A closed gate silences a NaN query.", _Setup(edit=_NAN_QUERY)),
    "inf_query_closed": ("A closed gate silences an infinite query.", _Setup(edit=_INF_QUERY)),
    "nan_key_closed": (
        "A closed gate silences NaN and Inf in keys.",
        _Setup(edit=_NAN_KEY),
    ),
    "nan_value_closed": ("A closed gate silences NaN and Inf in values.", _Setup(edit=_NAN_VALUE)),
    "nan_query_closed_masked": (
        "The same in a masked variant.",
        _Setup(edit=_NAN_QUERY, mask=_bool_mask(7, 7), rank=4),
    ),
    "nan_query_open": ("An open gate hides nothing.", _Setup(edit=_NAN_QUERY_OPEN)),
    "inf_query_open": (
        "A query whose scores are all -inf is not one that sees no key: NaN.",
        _Setup(edit=_inf_query_open),
    ),
    "inf_key_open": ("A key whose score is -inf has no weight.", _Setup(edit=_inf_key_open)),
    "inf_value_open": ("An infinite value reaches its channel.", _Setup(edit=_INF_VALUE_OPEN)),
    "nan_query_blind": (
        "A NaN query that sees no key gives 0.",
        _Setup(edit=_NAN_QUERY_BLIND, mask=_blind_rows(7, 7)),
    ),
    "nan_gate": ("A NaN gate propagates.", _Setup(edit=_NAN_GATE)),
    "nan_gate_blind": (
        "A NaN gate propagates where the query sees no key.",
        _Setup(edit=_NAN_GATE_OF_BLIND_QUERY, mask=_blind_rows(7, 7)),
    ),
    "filled": (
        "Keys from nonpad_kv_seqlen on are not seen: each sequence has its own length.",
        _Setup(batch=3, kv_len=13, filled=(13, 4, 1)),
    ),
    "filled_rank4": ("The same by heads.", _Setup(rank=4, kv_len=9, filled=(8, 3))),
    "filled_grouped": (
        "The same with grouped heads.",
        _Setup(q_num_heads=6, kv_num_heads=2, kv_len=9, filled=(2, 9)),
    ),
    "filled_decode": (
        "Decoding in a cache with room: the query stands at the last filled key.",
        _Setup(rank=4, is_causal=True, seq_len=1, kv_len=37, filled=(37, 5)),
    ),
    "filled_chunk": (
        "Query s sits at nonpad_kv_seqlen - S + s.",
        _Setup(rank=4, batch=3, is_causal=True, seq_len=5, kv_len=19, filled=(19, 6, 12)),
    ),
    "filled_prompt": (
        "Nothing was cached before: query s sees s + 1 keys.",
        _Setup(is_causal=True, kv_len=16, filled=(7, 7)),
    ),
    "filled_fewer_than_queries": (
        "Queries that would stand before the first key see nothing and give 0.",
        _Setup(is_causal=True, kv_len=9, filled=(3, 6)),
    ),
    "filled_causal_grouped": (
        "The form of a decoder with grouped heads.",
        _Setup(
            rank=4,
            is_causal=True,
            q_num_heads=6,
            kv_num_heads=2,
            seq_len=4,
            kv_len=11,
            filled=(4, 9),
        ),
    ),
    "filled_many_keys": (
        "Lengths on both sides of where tiles and blocks of keys end.",
        _Setup(
            batch=3,
            is_causal=True,
            seq_len=2,
            kv_len=301,
            q_num_heads=2,
            kv_num_heads=2,
            head_dim=24,
            value_dim=24,
            filled=(65, 256, 290),
        ),
    ),
    "filled_many_queries": (
        "Rows of a tile that see different numbers of keys.",
        _Setup(batch=3, is_causal=True, seq_len=37, kv_len=70, filled=(37, 70, 51)),
    ),
    "filled_with_nothing": (
        "No key is filled: every query sees none and gives 0.",
        _Setup(filled=(0, 5), edit=_NAN_GATE),
    ),
    "filled_with_nothing_causal": (
        "The same with a causal mask.",
        _Setup(rank=4, is_causal=True, seq_len=3, filled=(0, 1)),
    ),
    "filled_bool_mask": (
        "Both hide: padding on the left of a cache with room on the right.",
        _Setup(kv_len=9, filled=(9, 4), mask=_bool_mask(2, 1, 1, 9)),
    ),
    "filled_bool_mask_causal": (
        "All three hide.",
        _Setup(
            rank=4, is_causal=True, seq_len=5, kv_len=9, filled=(8, 6), mask=_bool_mask(2, 1, 5, 9)
        ),
    ),
    "filled_additive_mask": (
        "A bias on what is filled.",
        _Setup(q_num_heads=4, kv_num_heads=2, filled=(2, 6), mask=_additive_mask(4, 1, 7)),
    ),
    "filled_additive_mask_causal": (
        "A bias on what filling and position leave.",
        _Setup(is_causal=True, seq_len=3, kv_len=7, filled=(3, 7), mask=_additive_mask(3, 7)),
    ),
    "filled_nan_bias": (
        "The bias of a key that is not filled may be anything, too.",
        _Setup(filled=(5, 6), mask=_nan_bias_behind),
    ),
    "filled_blind_queries": (
        "A query that only sees keys that are not filled gives 0.",
        _Setup(filled=(3, 5), mask=lambda rng: np.tri(7, k=-1, dtype=bool).T),
    ),
    "ranges_window": (
        "Each query sees its neighbours, as far as there are any.",
        _Setup(ranges=_window(7, 7, 2, 1)),
    ),
    "ranges_window_causal": (
        "A window on the left, behind cached keys.",
        _Setup(rank=4, is_causal=True, seq_len=5, kv_len=9, ranges=_window(5, 9, 2, 10**9)),
    ),
    "ranges_documents": (
        "Sequences have ranges of their own; two queries see nothing and give 0.",
        _Setup(ranges=_documents(7, (3, 4), (1, 2, 2)), edit=_NAN_GATE),
    ),
    "ranges_documents_causal": (
        "Both hide, with grouped heads.",
        _Setup(
            q_num_heads=6, kv_num_heads=2, is_causal=True, ranges=_documents(7, (3, 4), (1, 2, 4))
        ),
    ),
    "ranges_bool_mask": (
        "Padding within the ranges.",
        _Setup(ranges=_documents(7, (4, 3), (2, 5)), mask=_bool_mask(2, 1, 1, 7)),
    ),
    "ranges_additive_mask_causal": (
        "A bias on what range and position leave.",
        _Setup(
            rank=4,
            is_causal=True,
            seq_len=3,
            kv_len=7,
            ranges=_window(3, 7, 3, 3),
            mask=_additive_mask(3, 1, 7),
        ),
    ),
    "ranges_filled": (
        "Ranges in a cache with room.",
        _Setup(rank=4, kv_len=9, filled=(8, 3), ranges=_window(7, 9, 3, 1)),
    ),
    "ranges_filled_causal_bool_mask": (
        "All four hide.",
        _Setup(
            is_causal=True,
            seq_len=5,
            kv_len=9,
            filled=(8, 6),
            ranges=_window(5, 9, 4, 0),
            mask=_bool_mask(2, 1, 1, 9),
        ),
    ),
    "ranges_step": (
        "One query, and the last keys.",
        _Setup(rank=4, is_causal=True, seq_len=1, kv_len=37, ranges=_window(1, 37, 20, 0)),
    ),
    "ranges_many_keys": (
        "Ranges on both sides of where tiles and blocks of keys end.",
        _Setup(
            seq_len=70,
            kv_len=301,
            q_num_heads=2,
            kv_num_heads=2,
            head_dim=24,
            value_dim=24,
            scale=0.15,
            ranges=_window(70, 301, 129, -20),
        ),
    ),
    "ranges_many_documents": (
        "Rows of a tile that see different keys, some of them none.",
        _Setup(
            seq_len=80,
            kv_len=80,
            is_causal=True,
            ranges=_documents(80, (33, 1, 46), (5, 11, 40, 20)),
        ),
    ),
    "empty_batch": ("No sequence at all.", _Setup(rank=4, batch=0)),
    "empty_batch_filled": ("The same with lengths.", _Setup(rank=4, batch=0, filled=())),
    "empty_queries": (
        "No token asks.",
        _Setup(rank=4, seq_len=0, mask=_additive_mask(2, 3, 1, 7)),
    ),
    "empty_queries_causal": ("The same after a cache.", _Setup(rank=4, seq_len=0, is_causal=True)),
    "empty_keys": ("Without keys, every query sees none and gives 0.", _Setup(rank=4, kv_len=0)),
    "empty_keys_causal": ("The same with a causal mask.", _Setup(rank=4, kv_len=0, is_causal=True)),
    "empty_keys_filled": (
        "Room for no key.",
        _Setup(rank=4, kv_len=0, is_causal=True, filled=(0, 0)),
    ),
    "empty_keys_masked": ("A mask of no key.", _Setup(rank=4, kv_len=0, mask=_no_keys)),
    "empty_keys_nan_gate": (
        "A NaN gate propagates here, too.",
        _Setup(rank=4, kv_len=0, edit=_NAN_GATE),
    ),
}

CASES = in_every_dtype(tuple(setup.case(name, why) for name, (why, setup) in _TABLE.items()))
