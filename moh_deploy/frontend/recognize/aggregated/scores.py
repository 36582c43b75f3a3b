"""Scores of one softmax over several products of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, fresh_dim, leaves, product, resolve
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, named, op, rank, shape
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import Piece
from moh_deploy.frontend.fx.views import backward, is_view
from moh_deploy.frontend.recognize.aggregated.form import WindowSource
from moh_deploy.frontend.recognize.aggregated.peel import (
    Peeled,
    Rows,
    close,
    operand_and_known,
    peel,
    same_query,
    value_over,
)
from moh_deploy.frontend.recognize.aggregated.windows import CutWindows, WindowAxes, read_windows
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL
from moh_deploy.frontend.recognize.layer import MoHLayer


@dataclass(frozen=True)
class ScorePart:
    """A product of queries and keys that makes the scores `start` to `stop` of the softmax."""

    # Its factors; which one is the query is for the reader to tell.
    operands: tuple[Operand, Operand]
    columns: Dim
    summed: Dim  # the axes that it sums over: the head dimension
    start: int
    stop: int
    scale: Tensor  # [H, N], multiplies the product; a size may be 1


@dataclass
class JointScores:
    """The products that one softmax spans, and what is known beforehand of its scores."""

    bias: Tensor  # [H, N, J], added to the scores
    hidden: Tensor  # [H, N, J], True where a score is overwritten with minus infinity
    parts: list[ScorePart] = field(default_factory=list)


class JointScoreReader:
    """Walks from a softmax back to the products, through masks, biases and scales.

    Args:
        heads, tokens: Axes of the scores besides the batch.
    """

    def __init__(self, heads: Dim, tokens: Dim, known: KnownValues) -> None:
        self._heads, self._tokens, self._known = heads, tokens, known

    def read(self, softmax: Node, layout: Layout, columns: Dim) -> JointScores:
        """Read the scores that a softmax node normalises."""
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
        name, node = op(at.node), at.node
        found = contraction(node)
        if found is not None and found.summed and all(map(self._known.varies, found.operands)):
            # [B, H, N, D] @ [B, H, D, P], or a sum over D of [B, H, N, 1, D] * [B, H, N, L, D]:
            # what both operands have and the scores lack is the head dimension.
            first, second = map(Operand, found.operands, found.operand_layouts(at.layout))
            outside = set(flat(at.layout))
            summed = tuple(axis for axis in flat(first.layout) if axis not in outside)
            part = (at.columns, summed, at.start, at.stop, at.scale[..., 0])
            scores.parts.append(ScorePart((first, second), *part))
            return []
        if is_view(node) and (step := backward(node, at.layout)) is not None:
            return [at.moved(*step)]
        if name in ("add", "sub", "subtract"):
            return [self._undo_add(at, scores)]
        if name in ("mul", "multiply", "div", "divide", "true_divide"):
            return [self._undo_scale(at)]
        if name == "masked_fill":
            source, mask, fill = node.args[:3]
            return [self._undo_fill(at, source, self._mask(at, mask), fill, scores)]
        if name == "where":
            condition, chosen, rejected = node.args[:3]
            mask = self._mask(at, condition)
            if isinstance(chosen, Node) and self._known.varies(chosen):
                return [self._undo_fill(at, chosen, ~mask, rejected, scores)]
            return [self._undo_fill(at, rejected, mask, chosen, scores)]
        if name in ("cat", "stack"):
            return self._pieces(at)
        raise NotCoveredError(f"{named(node)} stands between the scores and their softmax")

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


# The keys of one product of a joint softmax, and the query that it reads.


@dataclass(frozen=True)
class Keys:
    """The keys of a window, or the pooled ones, and how the scores read them."""

    columns: Tensor  # places in the softmax, in the order of the keys
    query: Peeled  # the query; its head dimension is `source.head_dim`
    source: WindowSource  # the keys before they get unit length; one row a pixel, or a pooled token
    # The keys of unit length; None where the model has them as windows only.
    unit: WindowSource | None
    epsilon: float | None  # smallest norm; None where the keys are taken as they are
    scale: Tensor  # [H, N]; a size may be 1: of the scores, in total


class KeyReader:
    """Reads the products of one layer's joint softmax."""

    def __init__(self, layer: MoHLayer, known: KnownValues) -> None:
        self._layer, self._known = layer, known

    def pooled(self, part: ScorePart) -> Keys | None:
        """Keys that are the same for all pixels; None for other products."""
        # Pooled keys [B, H, P, D] have no axis of the pixels: all pixels see the same ones.
        tokens = set(leaves(self._layer.tokens))
        for query, key in (part.operands, part.operands[::-1]):
            if tokens.isdisjoint(flat(key.layout)) and not tokens.isdisjoint(flat(query.layout)):
                rows = Rows(self._layer.heads, part.columns, part.summed)
                keys = peel(key, rows, self._known, is_query=False)
                return self._keys([part], self._query(part, query), keys, keys.scale, part.columns)
        return None

    def windowed(self, parts: Sequence[ScorePart], pooled: Keys) -> tuple[Keys, CutWindows]:
        """The keys of the windows around each pixel, and how they were cut out.

        Args:
            parts: Products with keys of all taps, or with a part of them each.
        """
        # Keys of windows are [B, H, N, L, D]. A model may also compute one product for each tap,
        # with the image shifted by it: L parts of [B, H, N, D], which together are the windows.
        layer = self._layer
        cut: list[Peeled] = []
        queries: list[Peeled] = []
        sources: list[tuple[Operand, WindowAxes]] = []
        for part in parts:
            query, key = self._told_apart(part, pooled)
            rows = Rows(layer.heads, (*layer.tokens, *part.columns), part.summed)
            keys, own = peel(key, rows, self._known, is_query=False), self._query(part, query)
            axes = WindowAxes(layer.batch, layer.heads, layer.tokens, part.columns, part.summed)
            cut.append(keys)
            queries.append(own)
            sources.append((keys.source, axes))
            # One op computes all taps: with one query, one scale and one epsilon.
            scale = part.scale * own.scale[..., 0]
            if not (
                same_query(own, queries[0], (part.summed, parts[0].summed))
                and keys.epsilon == cut[0].epsilon
                and close(scale, parts[0].scale * queries[0].scale[..., 0])
                and close(keys.scale, cut[0].scale)
            ):
                raise NotCoveredError("the scores of a window are computed in different ways")
        windows = read_windows(sources, self._known, "keys")
        # Unit length may be given to the whole image before windows are cut out of it (then it is
        # behind the cut, and still to be peeled off), or to each window's keys afterwards.
        image, head_dim = windows.image, parts[0].summed
        if cut[0].epsilon is None and not image.cuts:
            pixels = Rows(layer.heads, layer.tokens, head_dim)
            keys = peel(Operand(image.node, image.layout), pixels, self._known, is_query=False)
            scale = cut[0].scale * keys.scale
            return self._keys(parts, queries[0], keys, scale, layer.tokens), windows
        source = WindowSource(image, layer.tokens, head_dim)
        unit = source if cut[0].epsilon is None else None
        scale = parts[0].scale * (queries[0].scale * cut[0].scale)[..., 0]
        return Keys(_columns(parts), queries[0], source, unit, cut[0].epsilon, scale), windows

    def _keys(
        self, parts: Sequence[ScorePart], query: Peeled, keys: Peeled, scale: Tensor, rows: Dim
    ) -> Keys:
        source, unit = (
            WindowSource(Piece(operand.node, operand.layout), rows, parts[0].summed)
            for operand in (keys.source, keys.unit)
        )
        total = parts[0].scale * (query.scale * scale)[..., 0]
        return Keys(_columns(parts), query, source, unit, keys.epsilon, total)

    def _query(self, part: ScorePart, query: Operand) -> Peeled:
        rows = Rows(self._layer.heads, self._layer.tokens, part.summed)
        return peel(query, rows, self._known, is_query=True)

    def _told_apart(self, part: ScorePart, pooled: Keys) -> tuple[Operand, Operand]:
        """Query and keys of a window: of a single tap, both have one row a pixel."""
        columns = set(leaves(part.columns))
        for query, key in (part.operands, part.operands[::-1]):
            if columns and not columns & set(flat(query.layout)):
                return query, key
            dims = (part.summed, pooled.source.head_dim)
            if not columns and same_query(self._query(part, query), pooled.query, dims):
                return query, key
        raise NotCoveredError("the softmax is not over products of queries and keys")


def _columns(parts: Sequence[ScorePart]) -> Tensor:
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])
