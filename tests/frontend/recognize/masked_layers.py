"""Attention layers whose masks are written in many ways, side by side in one model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS, HEAD_DIM = 4, 4
WIDTH = HEADS * HEAD_DIM
LOWEST = torch.finfo(torch.float32).min
TABLE = 64  # as many places as tables of masks have


@dataclass(frozen=True)
class Given:
    """What a mask may be made of."""

    ids: Tensor  # [B, S]
    valid: Tensor  # int64 [B, T], 1 for tokens
    padding: Tensor  # bool [B, S], True for padding
    positions: Tensor  # int64 [B, S]
    documents: Tensor  # int64 [B, S]
    lengths: Tensor  # int64 [B]
    past: int  # keys before the first query

    @property
    def row(self) -> Tensor:
        """The places of queries, [S, 1]."""
        return torch.arange(self.ids.shape[1])[:, None]

    @property
    def column(self) -> Tensor:
        """The places of keys without a cache, [S]."""
        return torch.arange(self.ids.shape[1])

    @property
    def tril(self) -> Tensor:
        size = self.ids.shape[1]
        return torch.tril(torch.ones(size, size, dtype=torch.bool))


Masking = Callable[[Tensor, Given], Tensor]
# Scores [B, H, S, T] and what is given to masked scores.


@dataclass(frozen=True)
class MaskCase:
    """A way to write a mask."""

    words: str  # the structure that it has; after `no: ` a part of the reason why none is known
    apply: Masking | None  # None: causal by PyTorch's fused attention
    cached: bool = False


def _fill(seen: Callable[[Given], Tensor], fill: float = LOWEST) -> Masking:
    return lambda scores, given: scores.masked_fill(~seen(given), fill)


def _add(bias: Callable[[Given], Tensor]) -> Masking:
    return lambda scores, given: scores + bias(given)


def _keys(valid: Tensor) -> Tensor:
    return valid[:, None, None, :]


def _upper(given: Given, diagonal: int = 1) -> Tensor:
    size = given.ids.shape[1]
    return torch.triu(torch.full((size, size), float("-inf")), diagonal=diagonal)


def _inverted(valid: Tensor) -> Tensor:
    """0 for tokens and the lowest number for padding, as encoders have it."""
    inverted = 1.0 - _keys(valid).float()
    return inverted.masked_fill(inverted.bool(), LOWEST)


def _expanded(given: Given) -> Tensor:
    """A causal mask and one of padding, each added to scores, joined by a fill."""
    size = given.ids.shape[1]
    mask = torch.full((size, size), LOWEST)
    places = torch.arange(size)
    mask = mask.masked_fill(places < (places + 1).view(size, 1), 0.0)
    joined = mask[None, None].expand(given.ids.shape[0], 1, size, size)
    return joined.masked_fill(_inverted(given.valid).bool(), LOWEST)


def _by_cache_position(given: Given) -> Tensor:
    """Places of queries counted behind a cache, compared with those of all keys."""
    keys = given.valid.shape[1]
    place = given.past + torch.arange(given.ids.shape[1])
    mask = torch.full((given.ids.shape[1], keys), LOWEST)
    mask = mask * (torch.arange(keys) > place.reshape(-1, 1))
    mask = mask[None, None].expand(given.ids.shape[0], 1, -1, -1).clone()
    hidden = (mask + _keys(given.valid)) == 0
    return mask.masked_fill(hidden, LOWEST)


def _opened(given: Given) -> Tensor:
    """As above; rows that have no key left see all."""
    mask = torch.where(given.tril[None, None] & _keys(given.valid).bool(), 0.0, LOWEST)
    return mask * ~torch.all(mask == LOWEST, dim=-1, keepdim=True)


def _band(given: Given, width: int) -> Tensor:
    return (given.column <= given.row) & (given.row - given.column < width)


def _alibi(given: Given) -> Tensor:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(1, HEADS, 1, 1)
    return -(given.row - given.column).abs() * slopes


def _of_ids(given: Given, token: int) -> Tensor:
    """Numbers of documents, each of which ends with a token."""
    ends = (given.ids == token).long()
    return ends.cumsum(1) - ends


def _same(numbers: Tensor) -> Tensor:
    return (numbers[:, :, None] == numbers[:, None, :])[:, None]


class _Table(nn.Module):
    """Looks a mask up in a table that the model keeps."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.bool(), persistent=False)

    def forward(self, scores: Tensor, given: Given) -> Tensor:
        size = given.ids.shape[1]
        return torch.where(self.table[:size, :size], scores, torch.tensor(LOWEST))


def _ones() -> Tensor:
    return torch.ones(TABLE, TABLE)


CASES: dict[str, MaskCase] = {
    "tril": MaskCase("causal", _fill(lambda g: g.tril, float("-inf"))),
    "tril_lowest": MaskCase("causal", _fill(lambda g: g.tril)),
    "triu_added": MaskCase("causal", _add(_upper)),
    "arange": MaskCase("causal", _fill(lambda g: g.column <= g.row, -1e9)),
    "arange_from_below": MaskCase("causal", _fill(lambda g: ~(g.row < g.column))),
    "where_added": MaskCase("causal", _add(lambda g: torch.where(g.tril, 0.0, -1e9))),
    "multiplied": MaskCase("causal", lambda s, g: s * g.tril.float() - 1e10 * (1 - g.tril.float())),
    "ten_thousand": MaskCase("causal", _add(lambda g: (1 - g.tril.float()) * -10000.0)),
    "table": MaskCase("causal", _Table(torch.tril(_ones()))),
    "encoder": MaskCase("padding", _add(lambda g: _inverted(g.valid))),
    "fused": MaskCase("causal", None),
    # Query s sees keys up to s, counted from the first of the cache.
    "fused_behind_a_cache": MaskCase("keys up to a position", None, cached=True),
    "padding_flags": MaskCase("padding", _fill(lambda g: ~g.padding[:, None, None])),
    "lengths": MaskCase("padding", _fill(lambda g: g.column < g.lengths[:, None, None, None])),
    "padding_token": MaskCase("padding", _fill(lambda g: (g.ids != 1)[:, None, None])),
    "joined": MaskCase("causal, padding", _fill(lambda g: g.tril & _keys(g.valid).bool())),
    "two_masks": MaskCase(
        "causal, padding",
        lambda s, g: s.masked_fill(~g.tril, LOWEST) + (1 - _keys(g.valid).float()) * -1e9,
    ),
    "clamped_sum": MaskCase(
        "causal, padding",
        _add(lambda g: (_upper(g).clamp(min=LOWEST) + _inverted(g.valid)).clamp(min=LOWEST)),
    ),
    "expanded": MaskCase("causal, padding", _add(_expanded)),
    "opened_rows": MaskCase("causal, padding", _add(_opened)),
    "product_of_masks": MaskCase(
        "causal, padding",
        _fill(lambda g: (g.tril.long()[None, None] * _keys(g.valid)) > 0),
    ),
    "cache": MaskCase(
        "causal",
        lambda s, g: s.masked_fill(torch.arange(s.shape[-1]) > g.row + g.past, LOWEST),
        cached=True,
    ),
    "cache_position": MaskCase("causal, padding", _add(_by_cache_position), cached=True),
    "chunk_of_prompt": MaskCase(
        "causal",
        lambda s, g: s.masked_fill(
            ~torch.ones(s.shape[-2:], dtype=torch.bool).tril(s.shape[-1] - s.shape[-2]), LOWEST
        ),
        cached=True,
    ),
    "window": MaskCase("causal, window of 3", _fill(lambda g: _band(g, 3))),
    "window_large": MaskCase("causal, window of 40", _fill(lambda g: _band(g, 40))),
    "window_triu": MaskCase(
        "causal, window of 5", _fill(lambda g: g.tril & torch.triu(torch.ones_like(g.tril), -4))
    ),
    "window_table": MaskCase("causal, window of 20", _Table(torch.tril(torch.triu(_ones(), -19)))),
    "window_padding": MaskCase(
        "causal, window of 3, padding", _fill(lambda g: _band(g, 3) & _keys(g.valid).bool())
    ),
    "window_of_cache": MaskCase(
        "causal, window of 4",
        lambda s, g: s.masked_fill(
            ~(
                (torch.arange(s.shape[-1]) <= g.row + g.past)
                & (torch.arange(s.shape[-1]) > g.row + g.past - 4)
            ),
            LOWEST,
        ),
        cached=True,
    ),
    "neighbours": MaskCase("window", _fill(lambda g: (g.row - g.column).abs() <= 2)),
    "chunks": MaskCase("chunks of 4", _fill(lambda g: g.row // 4 == g.column // 4)),
    "chunks_causal": MaskCase(
        "causal, chunks of 4", _fill(lambda g: g.tril & (g.row // 4 == g.column // 4))
    ),
    "chunks_and_the_one_before": MaskCase(
        "causal, chunks of 4 and 1 before",
        _fill(lambda g: g.tril & (g.row // 4 - g.column // 4 <= 1)),
    ),
    "prefix": MaskCase("prefix", _fill(lambda g: g.tril | (g.column < 3))),
    "prefix_lengths": MaskCase(
        "prefix", _fill(lambda g: g.tril | (g.column < g.lengths[:, None, None, None]))
    ),
    "documents": MaskCase("causal, documents", _fill(lambda g: g.tril & _same(_of_ids(g, 2)))),
    "documents_both_ways": MaskCase("documents", _fill(lambda g: _same(_of_ids(g, 2)))),
    "positions": MaskCase(
        "keys up to a position", _fill(lambda g: g.column <= g.positions[:, None, :, None])
    ),
    "alibi": MaskCase("causal, a bias", lambda s, g: (s + _alibi(g)).masked_fill(~g.tril, LOWEST)),
    # Numbers that act at large sizes, in other places than a comparison.
    "window_filled": MaskCase(
        "causal, window of 60",
        _fill(lambda g: g.tril & (g.row - g.column < torch.full((1,), 60))),
    ),
    "window_scaled": MaskCase(
        "causal, window of 60", _fill(lambda g: g.tril & ((g.row - g.column) * 0.05 < 3))
    ),
    "window_of_size": MaskCase(
        "causal, window of 60",
        _fill(lambda g: g.tril & (g.row - g.column < torch.sym_min(g.ids.shape[1], 60))),
    ),
    # What looks alike, and is not.
    "window_growing": MaskCase(
        "no: begin follows no known rule",
        _fill(lambda g: g.tril & (g.row - g.column < torch.sym_max(g.ids.shape[1] - 20, 20))),
    ),
    "window_by_logarithm": MaskCase(
        "no: no number tells",
        _fill(lambda g: g.tril & ((g.row - g.column).clamp(min=1).log() < 4)),
    ),
    "at_one_size": MaskCase(
        "no: was the same", _fill(lambda g: g.tril | (torch.full((1,), g.ids.shape[1]) == 50))
    ),
    "hidden_token": MaskCase(
        "no: sees no key", _fill(lambda g: g.tril & (g.ids != 15)[:, None, None])
    ),
    "one_more": MaskCase("keys up to a position", _fill(lambda g: g.column <= g.row + 1)),
    "one_less": MaskCase("no: query 0 sees no key", _fill(lambda g: g.column < g.row)),
    "window_that_wraps": MaskCase(
        "no: sees keys with gaps",
        _fill(lambda g: (g.row - g.column) % g.ids.shape[1] < 3),
    ),
    "each_head": MaskCase(
        "no: heads have masks of their own",
        _fill(lambda g: g.tril & (g.row - g.column < torch.arange(2, 2 + HEADS)[:, None, None])),
    ),
    "half_of_all": MaskCase(
        "no: follows no known rule",
        _fill(lambda g: g.tril & (g.row - g.column <= g.ids.shape[1] // 2)),
    ),
    "dilated": MaskCase(
        "no: sees keys with gaps", _fill(lambda g: g.tril & ((g.row - g.column) % 2 == 0))
    ),
    "sink": MaskCase("no: sees keys with gaps", _fill(lambda g: _band(g, 3) | (g.column < 1))),
    "documents_of_an_input": MaskCase(
        "no: neither whole keys nor documents in order",
        _fill(lambda g: g.tril & _same(g.documents)),
    ),
    "alibi_joined": MaskCase(
        "no: adds more to scores than what hides keys",
        _add(lambda g: _alibi(g).masked_fill(~g.tril, LOWEST)),
    ),
    "kinds_of_tokens": MaskCase(
        "no: ", _fill(lambda g: g.tril | (g.documents == 1)[:, None, None])
    ),
}


class MaskedAttention(nn.Module):
    """An attention of two of four heads for each token, with a mask."""

    def __init__(self, case: MaskCase) -> None:
        super().__init__()
        self.apply_mask, self.cached = case.apply, case.cached
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.router = nn.Linear(WIDTH, HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cache: Tensor, given: Given) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.cached:
            key, value = torch.cat([cache, key], dim=2), torch.cat([cache, value], dim=2)
        if self.apply_mask is None:
            heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(-2, -1) / math.sqrt(HEAD_DIM)
            heads = self.apply_mask(scores, given).softmax(-1) @ value
        chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(batch, length, HEADS).scatter(-1, chosen.indices, chosen.values)
        heads = heads * gates.transpose(1, 2).unsqueeze(-1)
        return self.out(heads.transpose(1, 2).reshape(batch, length, WIDTH))


class MaskedModel(nn.Module):
    """A layer for each of some cases, all of which read the same tokens."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleDict({name: MaskedAttention(CASES[name]) for name in names})

    def forward(
        self,
        ids: Tensor,
        valid: Tensor,
        padding: Tensor,
        positions: Tensor,
        documents: Tensor,
        lengths: Tensor,
        cache: Tensor,
    ) -> dict[str, Tensor]:
        x, past = functional.layer_norm(self.embedding(ids), (WIDTH,)), cache.shape[2]
        found = {}
        for name, layer in self.layers.items():
            mask = valid if layer.cached else valid[:, past:]
            given = Given(ids, mask, padding, positions, documents, lengths, past)
            found[name] = layer(x, cache, given)
        return found


class StaticCache(nn.Module):
    """A layer over a cache of a fixed size; rows of a stored causal mask are read by position.

    Args:
        wrong_row: Of the mask: it also shows the last key. None for a right mask.
    """

    mask: Tensor

    def __init__(self, size: int, wrong_row: int | None = None) -> None:
        super().__init__()
        mask = torch.ones(size, size, dtype=torch.bool).tril()
        if wrong_row is not None:
            mask[wrong_row, -1] = True
        self.register_buffer("mask", mask, persistent=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.router = nn.Linear(WIDTH, HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        keys, values = keys.index_copy(2, positions, key), values.index_copy(2, positions, value)
        heads = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=self.mask[None, None, positions]
        )
        chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(batch, length, HEADS).scatter(-1, chosen.indices, chosen.values)
        heads = heads * gates.transpose(1, 2).unsqueeze(-1)
        return self.out(heads.transpose(1, 2).reshape(batch, length, WIDTH))
