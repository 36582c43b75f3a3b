"""The keys of one product of a joint softmax, and the query that it reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from moh_deploy.frontend.recognize.aggregated.form import Source
from moh_deploy.frontend.recognize.aggregated.peel import Peeled, Rows, peel, same_rows
from moh_deploy.frontend.recognize.aggregated.scores import Part
from moh_deploy.frontend.recognize.aggregated.windows import CutWindows, WindowAxes, read_windows
from moh_deploy.frontend.recognize.axes import flat, leaves
from moh_deploy.frontend.recognize.cores.core import Operand
from moh_deploy.frontend.recognize.known_values import KnownValues
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.not_covered import NotCoveredError
from moh_deploy.frontend.recognize.slices import Piece


@dataclass(frozen=True)
class Keys:
    """What one product of queries and keys reads.

    Attributes:
        part: The product.
        query: The query; its head dimension is `part.summed`.
        source: The keys before they get unit length; one row a pixel, or a pooled token.
        unit: The keys of unit length; None where the model has them as windows only.
        epsilon: Smallest norm; None where the keys are taken as they are.
        scale: [H, N]; a size may be 1: of the scores, in total.
        windows: How the keys were cut; None for pooled keys.
    """

    part: Part
    query: Peeled
    source: Source
    unit: Source | None
    epsilon: float | None
    scale: Tensor
    windows: CutWindows | None


class KeyReader:
    """Reads the products of one layer's joint softmax."""

    def __init__(self, layer: MoHLayer, known: KnownValues) -> None:
        self._layer, self._known = layer, known

    def read(self, parts: list[Part]) -> tuple[list[Keys], list[Keys]]:
        """Return the keys of windows and the keys for all pixels.

        Raises:
            NotCoveredError: With the reason.
        """
        pooled = [keys for part in parts if (keys := self._pooled(part)) is not None]
        read = {id(keys.part) for keys in pooled}
        windows = [self._windowed(part, pooled) for part in parts if id(part) not in read]
        return windows, pooled

    def _pooled(self, part: Part) -> Keys | None:
        for query, key in (part.operands, part.operands[::-1]):
            if self._has_tokens(query) and not self._has_tokens(key):
                rows = Rows(self._layer.heads, part.columns, part.summed)
                keys = peel(key, rows, self._known, is_query=False)
                return self._keys(part, self._query(part, query), keys, keys.scale, None)
        return None

    def _windowed(self, part: Part, pooled: list[Keys]) -> Keys:
        query, key = self._told_apart(part, pooled)
        layer, columns, head_dim = self._layer, part.columns, part.summed
        rows = Rows(layer.heads, (*layer.tokens, *columns), head_dim)
        cut = peel(key, rows, self._known, is_query=False)
        axes = WindowAxes(layer.batch, layer.heads, layer.tokens, columns, head_dim)
        windows = read_windows(cut.source, axes, self._known, "keys")
        image = windows.image
        if cut.epsilon is not None or image.cuts:
            source = Source(image, layer.tokens, head_dim)
            unit = None if cut.epsilon is not None else source
            query_read = self._query(part, query)
            scale = part.scale * (query_read.scale * cut.scale)[..., 0]
            return Keys(part, query_read, source, unit, cut.epsilon, scale, windows)
        pixels = Rows(layer.heads, layer.tokens, head_dim)
        keys = peel(Operand(image.node, image.layout), pixels, self._known, is_query=False)
        return self._keys(part, self._query(part, query), keys, cut.scale * keys.scale, windows)

    def _keys(
        self, part: Part, query: Peeled, keys: Peeled, scale: Tensor, windows: CutWindows | None
    ) -> Keys:
        rows = part.columns if windows is None else self._layer.tokens
        source, unit = (
            Source(Piece(operand.node, operand.layout), rows, part.summed)
            for operand in (keys.source, keys.unit)
        )
        total = part.scale * (query.scale * scale)[..., 0]
        return Keys(part, query, source, unit, keys.epsilon, total, windows)

    def _query(self, part: Part, query: Operand) -> Peeled:
        rows = Rows(self._layer.heads, self._layer.tokens, part.summed)
        return peel(query, rows, self._known, is_query=True)

    def _told_apart(self, part: Part, pooled: list[Keys]) -> tuple[Operand, Operand]:
        """Query and keys of a window: of a single tap, both have one row a pixel."""
        columns = set(leaves(part.columns))
        for query, key in (part.operands, part.operands[::-1]):
            if columns and columns & set(flat(query.layout)):
                continue
            read = self._query(part, query)
            if columns or any(
                same_rows(read.source, keys.query.source, (part.summed, keys.part.summed))
                for keys in pooled
            ):
                return query, key
        raise NotCoveredError("the softmax is not over products of queries and keys")

    def _has_tokens(self, operand: Operand) -> bool:
        return bool(set(leaves(self._layer.tokens)) & set(flat(operand.layout)))
