"""The sizes of a layer that its time is predicted from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """Sizes of a layer at some sizes of the model's inputs.

    Attributes:
        batch: Sequences.
        seq_len: Queries of each.
        kv_len: Keys of each; of a layer with windows, pooled keys only.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; fewer than `num_heads` for grouped queries.
        head_dim: Size of a head.
        num_shared_heads: Heads that every token chooses; the first ones.
        active_share: Share of (token, head) pairs with an open gate.
        is_causal: A query sees its own position and those before it.
        has_mask: There is a mask or bias of scores.
        query_features: Width of what the queries are projected from; None if that projection is
            not the layer's to choose.
        output_features: Width of what the heads are projected to; None likewise.
        window: Neighbours that a query sees besides; 0 for ordinary attention.
    """

    batch: int
    seq_len: int
    kv_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_shared_heads: int
    active_share: float
    is_causal: bool = False
    has_mask: bool = False
    query_features: int | None = None
    output_features: int | None = None
    window: int = 0

    @property
    def width(self) -> int:
        """Size of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Queries of all sequences."""
        return self.batch * self.seq_len

    @property
    def scores(self) -> int:
        """Scores of all heads, tokens and keys: what a dense layer computes."""
        return self.tokens * self.num_heads * (self.kv_len + self.window)

    @property
    def visible_share(self) -> float:
        """Share of (query, key) pairs where the query sees the key."""
        if not self.is_causal:
            return 1.0
        # The last query is at the last key: with a cache, earlier keys are seen by every query, and
        # the rest is a triangle with its diagonal (1 + 2 + ... + n pairs).
        seen_by_all = max(self.kv_len - self.seq_len, 0)
        triangle = min(self.seq_len, self.kv_len)
        seen = self.seq_len * seen_by_all + triangle * (triangle + 1) / 2
        return seen / (self.seq_len * self.kv_len)

    @property
    def read_kv_share(self) -> float:
        """Share of key and value heads that are read at all: by an open head of some query."""
        # Keys belong to one sequence, so only its own queries can make them be read.
        return self._used_share(self.num_heads // self.num_kv_heads, self.seq_len)

    @property
    def used_head_share(self) -> float:
        """Share of query heads that any token of any sequence chose."""
        # A weight is read for the whole batch: one token of any sequence is enough.
        return self._used_share(1, self.tokens)

    def _used_share(self, group: int, tokens: int) -> float:
        """Share of groups of neighbouring heads of which a token chose one, routed at random."""
        routed = self.num_heads - self.num_shared_heads
        open_heads = self.active_share * self.num_heads - self.num_shared_heads
        # Of one routed head to be open for one token. Shared heads are open for all, so what is
        # left of the active share is spread over the routed heads, evenly by assumption.
        chance = min(max(open_heads / routed, 0.0), 1.0) if routed else 0.0
        used = 0.0
        for first in range(0, self.num_heads, group):
            # Shared heads come first: how many of them are in the group [first, first + group).
            shared = min(max(self.num_shared_heads - first, 0), group)
            # No routed head of the group is open for any token, all being drawn independently.
            unused = (1 - chance) ** ((group - shared) * tokens)
            used += 1.0 if shared and self.active_share else 1 - unused
        return used * group / self.num_heads
