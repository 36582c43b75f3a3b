"""A recognised MoH layer, before anything is rewritten."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, Size, product
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import named

# The parts of an attention core, softmax(query @ key) @ value, however it was written.


@dataclass(frozen=True)
class MaskTerm:
    """One term that is applied to the scores before the softmax."""

    operand: Operand  # broadcastable to the scores
    # `keep`: bool, or 0 and 1; True may attend. `drop`: bool, True is overwritten with `value`.
    # `add`: added after multiplying by `value`.
    kind: Literal["keep", "drop", "add"]
    value: float = 1.0


@dataclass(frozen=True)
class Factor:
    """A tensor that scales the scores equally for all keys, so that it may scale the query."""

    operand: Operand
    divides: bool


@dataclass(frozen=True)
class Scores:
    """`scale * factors * (query @ key) + masks`."""

    query: Operand
    key: Operand
    key_axes: Dim  # the axes that the softmax normalises over
    scale: float
    factors: tuple[Factor, ...] = ()
    masks: tuple[MaskTerm, ...] = ()  # the last applied first
    # Query s sees keys 0..s (counted from the first query and key, as torch does).
    is_causal: bool = False

    @property
    def mixed_masks(self) -> str:
        """What to add to the reason of a difference that two finite masks may make; or nothing."""
        # masked_fill(-1e9) and an additive mask of -1e4, in one row that has no key left.
        fills = [mask.value for mask in self.masks if mask.kind != "add" and mask.value < 0]
        finite = [fill for fill in fills if math.isfinite(fill)]
        added = [mask.operand.node for mask in self.masks if mask.kind == "add"]
        if not finite or not added:
            return ""
        return (
            f"; a query whose keys are all hidden, some by {finite[0]:g} and others by what"
            f" {named(added[0])} adds, weighs both, which no MoH op computes: hide with -inf, or"
            " name the input that says which tokens are valid (--valid-tokens)"
        )


@dataclass(frozen=True)
class Core:
    """One product of attention weights with values."""

    anchor: Node  # the softmax or fused attention node
    # How the weights were made; None where MoHAttention cannot express it (then `obstacles` says
    # why).
    scores: Scores | None
    value: Operand
    output: Operand  # the result, before any gate
    value_axes: Dim  # axes that only the values have: the head dimension of the output
    obstacles: tuple[str, ...] = ()  # why this core cannot become a MoHAttention; empty if it can

    @property
    def operands(self) -> tuple[Node, ...]:
        """Query, key and value, as far as they are known."""
        read = () if self.scores is None else (self.scores.query.node, self.scores.key.node)
        return (*read, self.value.node)


@dataclass(frozen=True)
class HeadProjection:
    """A linear map of each head that stands between its attention and its gate."""

    attention: Operand
    weight: Operand  # summed with it over the head dimension
    columns: Dim  # the axes of the result that take the place of the head dimension


@dataclass(frozen=True)
class MoHLayer:
    """One attention whose heads are gated for each token.

    Attributes:
        path: Module path of the layer.
        node: The node whose value is gates * attention; with a `projection`, that of the projected
            attention, which may be summed over the heads.
        end: The last of the original operators that are replaced: `node`, or what reads it.
        layout: What the dimensions of the node's value mean.
        gates: The factors of the gates; their product is the gate of a (token, head).
        batch, heads, tokens: The axes of the output besides the head dimension; heads major first.
        obstacles: Why the attention cannot become a MoHAttention; empty if it can.
        projection: Of each head, before the gates; or None.
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
