"""The keys of one product of a joint softmax, and the query that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moh_deploy.frontend.fx.axes import Dim, flat, leaves
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import Piece
from moh_deploy.frontend.recognize.aggregated.form import WindowSource
from moh_deploy.frontend.recognize.aggregated.peel import Peeled, Rows, close, peel, same_query
from moh_deploy.frontend.recognize.aggregated.scores import ScorePart
from moh_deploy.frontend.recognize.aggregated.windows import CutWindows, WindowAxes, read_windows
from moh_deploy.frontend.recognize.layer import MoHLayer


@dataclass(frozen=True)
class Keys:
    """The keys of a window, or the pooled ones, and how the scores read them.

    Attributes:
        columns: Places in the softmax, in the order of the keys.
        query: The query; its head dimension is `source.head_dim`.
        source: The keys before they get unit length; one row a pixel, or a pooled token.
        unit: The keys of unit length; None where the model has them as windows only.
        epsilon: Smallest norm; None where the keys are taken as they are.
        scale: [H, N]; a size may be 1: of the scores, in total.
    """

    columns: Tensor
    query: Peeled
    source: WindowSource
    unit: WindowSource | None
    epsilon: float | None
    scale: Tensor


class KeyReader:
    """Reads the products of one layer's joint softmax.

    Args:
        known: Values that do not depend on the input.
    """

    def __init__(self, layer: MoHLayer, known: KnownValues) -> None:
        self._layer, self._known = layer, known

    def pooled(self, part: ScorePart) -> Keys | None:
        """Keys that are the same for all pixels; None for other products."""
        # Pooled keys [B, H, P, D] have no axis of the pixels: all pixels see the same ones.
        for query, key in (part.operands, part.operands[::-1]):
            if self._has_tokens(query) and not self._has_tokens(key):
                rows = Rows(self._layer.heads, part.columns, part.summed)
                keys = peel(key, rows, self._known, is_query=False)
                own = self._query(part, query)
                return self._keys([part], own, keys, keys.scale, part.columns)
        return None

    def windowed(self, parts: Sequence[ScorePart], pooled: Keys) -> tuple[Keys, CutWindows]:
        """The keys of the windows around each pixel, and how they were cut out.

        Args:
            parts: Products with keys of all taps, or with a part of them each.

        Raises:
            NotCoveredError: With the reason.
        """
        # Keys of windows are [B, H, N, L, D]. A model may also compute one product for each tap,
        # with the image shifted by it: L parts of [B, H, N, D], which together are the windows.
        layer = self._layer
        cut: list[Peeled] = []
        queries: list[Peeled] = []
        axes: list[WindowAxes] = []
        for part in parts:
            query, key = self._told_apart(part, pooled)
            rows = Rows(layer.heads, (*layer.tokens, *part.columns), part.summed)
            cut.append(peel(key, rows, self._known, is_query=False))
            queries.append(self._query(part, query))
            axes.append(
                WindowAxes(layer.batch, layer.heads, layer.tokens, part.columns, part.summed)
            )
        self._check_alike(parts, queries, cut)
        sources = [each.source for each in cut]
        windows = read_windows(list(zip(sources, axes, strict=True)), self._known, "keys")
        # Unit length may be given to the whole image before windows are cut out of it (then it is
        # behind the cut, and still to be peeled off), or to each window's keys afterwards.
        image = windows.image
        if cut[0].epsilon is None and not image.cuts:
            pixels = Rows(layer.heads, layer.tokens, parts[0].summed)
            keys = peel(Operand(image.node, image.layout), pixels, self._known, is_query=False)
            scale = cut[0].scale * keys.scale
            return self._keys(parts, queries[0], keys, scale, layer.tokens), windows
        source = WindowSource(image, layer.tokens, parts[0].summed)
        unit = source if cut[0].epsilon is None else None
        scale = parts[0].scale * (queries[0].scale * cut[0].scale)[..., 0]
        read = Keys(_columns(parts), queries[0], source, unit, cut[0].epsilon, scale)
        return read, windows

    def _check_alike(
        self, parts: Sequence[ScorePart], queries: Sequence[Peeled], keys: Sequence[Peeled]
    ) -> None:
        # One op computes all taps: with one query, one scale and one epsilon.
        for part, query, key in zip(parts, queries, keys, strict=True):
            dims = (part.summed, parts[0].summed)
            alike = (
                same_query(query, queries[0], dims)
                and key.epsilon == keys[0].epsilon
                and close(
                    part.scale * query.scale[..., 0], parts[0].scale * queries[0].scale[..., 0]
                )
                and close(key.scale, keys[0].scale)
            )
            if not alike:
                raise NotCoveredError("the scores of a window are computed in different ways")

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

    def _has_tokens(self, operand: Operand) -> bool:
        return bool(set(leaves(self._layer.tokens)) & set(flat(operand.layout)))


def _columns(parts: Sequence[ScorePart]) -> Tensor:
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])
