"""The parts of a windowed-and-pooled attention, however it was written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from moh_deploy.frontend.fx.axes import Dim
from moh_deploy.frontend.fx.slices import Piece
from moh_deploy.frontend.recognize.aggregated.neighbours import Window


@dataclass(frozen=True)
class WindowSource:
    """A tensor of heads for each row, or the part of one.

    Attributes:
        rows: The axes of its tokens, or of its pooled tokens.
        head_dim: The axes of one head.
    """

    piece: Piece
    rows: Dim
    head_dim: Dim


@dataclass(frozen=True)
class Aggregated:
    """The operands of MoHAggregatedAttention, in the words of `docs/ops.md`.

    Attributes:
        query, key, value: One row a pixel.
        pooled_key, pooled_value: One row a pooled token.
        window: Sizes of image and window.
        query_embedding: [H, D].
        query_scale: [H, N].
        window_bias: [H, L].
        pooled_bias: [H, N, P].
        window_tokens: [H, D, L].
        window_offset: [H, L].
        epsilon: Smallest norm; None where queries and keys are taken as they are.

    What does not depend on the input is float64; None where it changes nothing.
    """

    query: WindowSource
    key: WindowSource
    value: WindowSource
    pooled_key: WindowSource
    pooled_value: WindowSource
    window: Window
    query_embedding: Tensor | None
    query_scale: Tensor | None
    window_bias: Tensor | None
    pooled_bias: Tensor | None
    window_tokens: Tensor | None
    window_offset: Tensor | None
    epsilon: float | None

    @property
    def sources(self) -> tuple[WindowSource, ...]:
        return (self.query, self.key, self.value, self.pooled_key, self.pooled_value)
