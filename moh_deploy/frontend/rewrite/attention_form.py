"""The axes of a layer by the names that MoHAttention gives them."""

from __future__ import annotations

from dataclasses import dataclass

from moh_deploy.frontend.fx.axes import Dim, Layout


@dataclass(frozen=True)
class AttentionForm:
    """The axes of a layer as MoHAttention's: B, Hq, Hkv, S, T, D and Dv."""

    batch: Dim
    heads: Dim
    kv_heads: Dim
    tokens: Dim
    keys: Dim
    head_dim: Dim
    value_dim: Dim

    def query(self, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.head_dim, packed)

    def key(self, packed: bool) -> Layout:
        return self._layout(self.kv_heads, self.keys, self.head_dim, packed)

    def value(self, packed: bool) -> Layout:
        return self._layout(self.kv_heads, self.keys, self.value_dim, packed)

    def output(self, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.value_dim, packed)

    def scores(self) -> Layout:
        return (self.batch, self.heads, self.tokens, self.keys)

    def gates(self) -> Layout:
        return (self.batch, self.tokens, self.heads)

    def _layout(self, heads: Dim, rows: Dim, columns: Dim, packed: bool) -> Layout:
        if packed:
            return (self.batch, rows, (*heads, *columns))
        return (self.batch, heads, rows, columns)
