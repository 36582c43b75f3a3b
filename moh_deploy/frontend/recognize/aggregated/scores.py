"""Scores of one softmax over several products of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, fresh_dim, leaves, product, resolve
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, named, op, rank, shape
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.views import backward, is_view
from moh_deploy.frontend.recognize.aggregated.peel import operand_and_known, value_over
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL


@dataclass(frozen=True)
class ScorePart:
    """A product of queries and keys that makes the scores `start` to `stop` of the softmax.

    Attributes:
        operands: Its factors; which one is the query is for the reader to tell.
        columns: The axes of those scores.
        summed: The axes that it sums over: the head dimension.
        scale: [H, N], multiplies the product; a size may be 1.
    """

    operands: tuple[Operand, Operand]
    columns: Dim
    summed: Dim
    start: int
    stop: int
    scale: Tensor


@dataclass
class JointScores:
    """The products that one softmax spans, and what is known beforehand of its scores.

    Attributes:
        parts: The products, in the order of their scores.
        bias: [H, N, J], added to the scores.
        hidden: [H, N, J], True where a score is overwritten with minus infinity.
    """

    bias: Tensor
    hidden: Tensor
    parts: list[ScorePart] = field(default_factory=list)


class JointScoreReader:
    """Walks from a softmax back to the products, through masks, biases and scales.

    Args:
        heads, tokens: Axes of the scores besides the batch.
        known: Values that do not depend on the input.
    """

    def __init__(self, heads: Dim, tokens: Dim, known: KnownValues) -> None:
        self._heads, self._tokens, self._known = heads, tokens, known

    def read(self, softmax: Node, layout: Layout, columns: Dim) -> JointScores:
        """Read the scores that a softmax node normalises.

        Args:
            layout: Of the softmax.
            columns: The axes that it normalises over.

        Raises:
            NotCoveredError: With the reason.
        """
        # J scores in all: those of the window's taps and of the pooled tokens, however many
        # products they come from. Bias and mask are collected over all J; a place sees its own
        # share.
        extents = [int(product(leaves(group))) for group in (self._heads, self._tokens, columns)]
        bias = torch.zeros(extents, dtype=torch.float64)
        scores = JointScores(bias, torch.zeros(extents, dtype=torch.bool))
        scale = torch.ones(1, 1, 1, dtype=torch.float64)
        start = _Place(cast(Node, softmax.args[0]), layout, columns, 0, extents[-1], scale)
        # A `cat` opens as many places as it joins: each is read to its product before the next one.
        pending = [start]
        while pending:
            pending[:1] = self._undo(pending[0], scores)
        return scores

    def _undo(self, at: _Place, scores: JointScores) -> list[_Place]:
        """Undo the last operation; what remains to be read, nothing after a product."""
        name = op(at.node)
        found = contraction(at.node)
        if found is not None and found.summed and all(map(self._known.varies, found.operands)):
            scores.parts.append(self._part(at))
            return []
        if is_view(at.node):
            step = backward(at.node, at.layout)
            if step is not None:
                return [at.moved(step[0], step[1])]
        if name in ("add", "sub", "subtract"):
            return [self._undo_add(at, scores)]
        if name in ("mul", "multiply", "div", "divide", "true_divide"):
            return [self._undo_scale(at)]
        if name == "masked_fill":
            source, mask, fill = at.node.args[:3]
            return [self._undo_fill(at, source, self._mask(at, mask), fill, scores)]
        if name == "where":
            return [self._undo_where(at, scores)]
        if name in ("cat", "stack"):
            return self._pieces(at)
        raise NotCoveredError(f"{named(at.node)} stands between the scores and their softmax")

    def _part(self, at: _Place) -> ScorePart:
        found = contraction(at.node)
        assert found is not None
        # [B, H, N, D] @ [B, H, D, P], or a sum over D of [B, H, N, 1, D] * [B, H, N, L, D]: what
        # both operands have and the scores lack is the head dimension.
        first, second = found.operand_layouts(at.layout)
        outside = {axis for dim in resolve(at.layout) for axis in dim}
        summed = tuple(axis for dim in resolve(first) for axis in dim if axis not in outside)
        a, b = found.operands
        operands = (Operand(a, first), Operand(b, second))
        return ScorePart(operands, at.columns, summed, at.start, at.stop, at.scale[..., 0])

    def _undo_add(self, at: _Place, scores: JointScores) -> _Place:
        found = operand_and_known(at.node, at.layout, self._groups(at), self._known)
        alpha = argument(at.node, "alpha", 1)
        if found is None or not isinstance(alpha, (int, float)):
            raise NotCoveredError("a bias of the scores depends on the input")
        source, value, position = found
        weight = -alpha if op(at.node) in ("sub", "subtract") else alpha
        if position == 1 and weight != 1:
            raise NotCoveredError(f"{named(at.node)} subtracts the scores")
        # What is added is scaled by all scales that come behind it. A large negative number is a
        # mask, whatever else was added to the same scores.
        added = at.scale * weight * value
        hides = (added <= HIDING_FILL).expand_as(at.of(scores.hidden))
        seen = ~(at.of(scores.hidden) | hides)
        at.of(scores.bias).add_(torch.where(seen, added, 0.0))
        at.of(scores.hidden).logical_or_(hides)
        return at.moved(source, at.layout)

    def _undo_scale(self, at: _Place) -> _Place:
        found = operand_and_known(at.node, at.layout, self._groups(at), self._known)
        if found is None:
            raise NotCoveredError("a scale of the scores depends on the input")
        source, value, position = found
        divides = op(at.node) not in ("mul", "multiply")
        if value.shape[2] != 1 or (divides and position == 1):
            raise NotCoveredError(f"{named(at.node)} scales the scores differently for each key")
        factor = 1 / value if divides else value
        # A negative factor would turn minus infinity into infinity, and the best key into the
        # worst.
        if not bool((factor > 0).all()):
            raise NotCoveredError(f"{named(at.node)} scales the scores by 0 or less")
        return at.moved(source, at.layout, at.scale * factor)

    def _undo_where(self, at: _Place, scores: JointScores) -> _Place:
        condition, chosen, rejected = at.node.args[:3]
        if isinstance(chosen, Node) and self._known.varies(chosen):
            kept = self._mask(at, condition)
            return self._undo_fill(at, chosen, ~kept, rejected, scores)
        return self._undo_fill(at, rejected, self._mask(at, condition), chosen, scores)

    def _mask(self, at: _Place, mask: object) -> Tensor:
        value = value_over(mask, at.layout, self._groups(at), self._known)
        if value is None:
            raise NotCoveredError("a mask of the scores depends on the input")
        return value != 0

    def _undo_fill(
        self, at: _Place, source: object, mask: Tensor, fill: object, scores: JointScores
    ) -> _Place:
        """Scores where `mask` is True are overwritten."""
        value = value_over(fill, at.layout, self._groups(at), self._known)
        if value is None or not bool((value * at.scale <= HIDING_FILL).all()):
            raise NotCoveredError(
                f"{named(at.node)} fills masked scores with {fill},"
                " not with a large negative number"
            )
        at.of(scores.hidden).logical_or_(mask)
        return at.moved(cast(Node, source), at.layout)

    def _pieces(self, at: _Place) -> list[_Place]:
        operands = cast(tuple[Node, ...], at.node.args[0])
        dim = cast(int, argument(at.node, "dim", 0)) % rank(at.node)
        if leaves(at.layout[dim]) != leaves(at.columns):
            raise NotCoveredError(f"{named(at.node)} joins the scores of other heads or tokens")
        # `cat` along the softmax's dimension: each operand has a range of its scores, and an axis
        # of its own for it. An operand of `stack` has one score, and no dimension for it.
        pieces, start, stacked = [], at.start, op(at.node) == "stack"
        for operand in operands:
            extent = 1 if stacked else int(shape(operand)[dim])
            columns = () if stacked else fresh_dim(shape(operand)[dim])
            own = () if stacked else (columns,)
            layout = (*at.layout[:dim], *own, *at.layout[dim + 1 :])
            pieces.append(_Place(operand, layout, columns, start, start + extent, at.scale))
            start += extent
        return pieces

    def _groups(self, at: _Place) -> tuple[Dim, Dim, Dim]:
        return (self._heads, self._tokens, at.columns)


@dataclass(frozen=True)
class _Place:
    """One position of the walk: `scale * node` makes the scores `start` to `stop`."""

    node: Node
    layout: Layout
    columns: Dim
    start: int
    stop: int
    scale: Tensor

    def moved(self, node: Node, layout: Layout, scale: Tensor | None = None) -> _Place:
        scale = self.scale if scale is None else scale
        return _Place(node, resolve(layout), self.columns, self.start, self.stop, scale)

    def of(self, joint: Tensor) -> Tensor:
        """The share of a tensor [H, N, J] that belongs to these scores."""
        return joint[..., self.start : self.stop]
