"""The parts of an attention core, softmax(query @ key) @ value, however it was written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import named


@dataclass(frozen=True)
class MaskTerm:
    """One term that is applied to the scores before the softmax.

    Attributes:
        operand: Broadcastable to the scores.
        kind: `keep`: bool, or 0 and 1; True may attend. `drop`: bool, True is overwritten with
            `value`. `add`: added after multiplying by `value`.
    """

    operand: Operand
    kind: Literal["keep", "drop", "add"]
    value: float = 1.0


@dataclass(frozen=True)
class Factor:
    """A tensor that scales the scores equally for all keys, so that it may scale the query."""

    operand: Operand
    divides: bool


@dataclass(frozen=True)
class Scores:
    """`scale * factors * (query @ key) + masks`.

    Attributes:
        masks: The last applied first.
        key_axes: The axes that the softmax normalises over.
        is_causal: Query s sees keys 0..s (counted from the first query and key, as torch does).
    """

    query: Operand
    key: Operand
    key_axes: Dim
    scale: float
    factors: tuple[Factor, ...] = ()
    masks: tuple[MaskTerm, ...] = ()
    is_causal: bool = False

    @property
    def mixed_masks(self) -> str:
        """What to add to the reason of a difference that two finite masks may make; or nothing."""
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
    """One product of attention weights with values.

    Attributes:
        anchor: The softmax or fused attention node.
        scores: How the weights were made; None where MoHAttention cannot express it (then
            `obstacles` says why).
        value: The value tensor.
        output: The result, before any gate.
        value_axes: Axes that only the values have: the head dimension of the output.
        obstacles: Why this core cannot become a MoHAttention; empty if it can.
    """

    anchor: Node
    scores: Scores | None
    value: Operand
    output: Operand
    value_axes: Dim
    obstacles: tuple[str, ...] = ()

    @property
    def operands(self) -> tuple[Node, ...]:
        """Query, key and value, as far as they are known."""
        read = () if self.scores is None else (self.scores.query.node, self.scores.key.node)
        return (*read, self.value.node)
