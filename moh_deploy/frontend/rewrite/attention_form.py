"""The axes of a layer by the names that the attention ops give them."""

from __future__ import annotations

from dataclasses import dataclass

from moh_deploy.frontend.fx.axes import Dim, Layout, product


@dataclass(frozen=True)
class HeadAxes:
    """The axes of a layer that its attention and its projections have to meet: B, S, Hq, D and Dv.

    Attributes:
        heads: Major first.
        head_dim, value_dim: Of one head of the queries and of the output.
    """

    batch: Dim
    tokens: Dim
    heads: Dim
    head_dim: Dim
    value_dim: Dim

    @property
    def num_heads(self) -> int:
        return int(product(self.heads))

    def query(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.head_dim, packed)

    def output(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.value_dim, packed)

    def _layout(self, heads: Dim, rows: Dim, columns: Dim, packed: bool) -> Layout:
        if packed:
            return (self.batch, rows, (*heads, *columns))
        return (self.batch, heads, rows, columns)


@dataclass(frozen=True)
class AttentionForm(HeadAxes):
    """The axes of a layer as MoHAttention's: those of its heads, and Hkv and T."""

    kv_heads: Dim
    keys: Dim

    def inputs(self, *, packed: bool) -> tuple[Layout, Layout, Layout]:
        """The layouts of query, key and value."""
        key = self._layout(self.kv_heads, self.keys, self.head_dim, packed)
        value = self._layout(self.kv_heads, self.keys, self.value_dim, packed)
        return self.query(packed=packed), key, value
