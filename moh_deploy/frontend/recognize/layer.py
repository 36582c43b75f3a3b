"""A recognised MoH layer, before anything is rewritten."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, Size, product
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.recognize.cores.core import Core


@dataclass(frozen=True)
class HeadProjection:
    """A linear map of each head that stands between its attention and its gate.

    Attributes:
        attention: What is projected.
        weight: Summed with it over the head dimension.
        columns: The axes of the result that take the place of the head dimension.
    """

    attention: Operand
    weight: Operand
    columns: Dim


@dataclass(frozen=True)
class MoHLayer:
    """One attention whose heads are gated for each token.

    Attributes:
        path: Module path of the layer.
        node: The node whose value is gates * attention; with a `projection`, that of the projected
            attention, which may be summed over the heads.
        end: The last of the original operators that are replaced: `node`, or what reads it.
        layout: What the dimensions of the node's value mean.
        core: The attention.
        gates: The factors of the gates; their product is the gate of a (token, head).
        batch, heads, tokens: The axes of the output besides the head dimension; heads major first.
        obstacles: Why the attention cannot become a MoHAttention; empty if it can.
        projection: Of each head, before the gates; None where there is none.
    """

    path: str
    node: Node
    end: Node
    layout: Layout
    core: Core
    gates: tuple[Operand, ...]
    batch: Dim
    heads: Dim
    tokens: Dim
    obstacles: tuple[str, ...]
    projection: HeadProjection | None = None

    @property
    def num_heads(self) -> Size:
        return product(self.heads)

    @property
    def outer_obstacles(self) -> tuple[str, ...]:
        """The obstacles that any op would meet: they lie outside the attention itself."""
        return tuple(why for why in self.obstacles if why not in self.core.obstacles)
