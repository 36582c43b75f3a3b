"""Insert what tells an op which keys its queries see, from the structure of a layer's masks."""

import operator
from collections.abc import Sequence
from functools import reduce

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, product
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder
from moh_deploy.frontend.fx.graph import rank, shape
from moh_deploy.frontend.recognize.mask_structure import CAUSAL, Edge, MaskStructure

aten = torch.ops.aten

# Behind every key.
_END = (1 << 31) - 1


def insert_padding(builder: GraphBuilder, structure: MaskStructure) -> Node | None:
    """Return which keys are no padding, bool [B, 1, 1, T]; None where none is."""
    flags: list[Node] = []
    for node, hides in structure.padding:
        seen = builder.call(aten.eq.Scalar if hides else aten.ne.Scalar, node, 0)
        # [B, T], or the same with dimensions of size 1 between.
        for _ in range(rank(seen) - 2):
            seen = builder.call(aten.squeeze.dim, seen, 1)
        for _ in range(2):
            seen = builder.call(aten.unsqueeze.default, seen, 1)
        flags.append(seen)
    if not flags:
        return None
    return reduce(lambda a, b: builder.call(aten.logical_and.default, a, b), flags)


def insert_ranges(
    layouts: LayoutBuilder, structure: MaskStructure, queries: Dim, keys: Dim
) -> Node | None:
    """Return `key_ranges`, int64 [B or 1, S, 2]; None where `is_causal` says all.

    Raises:
        UnknownSizeError: No tensor has the number of queries, or of keys.
    """
    end = None if structure.end == CAUSAL else structure.end
    if structure.first is None and end is None and structure.documents is None:
        return None
    builder, many = layouts.builder, layouts.size(queries)
    is_square = product(queries) == product(keys)
    places = _Places(builder, many, many if is_square else layouts.size(keys))
    firsts = [] if structure.first is None else [places.of(structure.first)]
    ends = [] if end is None else [places.of(end)]
    if structure.documents is not None:
        first_of, end_of = places.of_documents(structure.documents)
        firsts.append(first_of)
        if structure.end != CAUSAL:
            ends.append(end_of)
    first = _reduced(builder, aten.maximum.default, firsts)
    last = _reduced(builder, aten.minimum.default, ends)
    if first is None:
        assert last is not None
        first = builder.call(aten.zeros_like.default, last)
    if last is None:
        last = builder.call(aten.full_like.default, first, _END)
    return builder.call(aten.stack.default, [first, last], -1)


def _reduced(builder: GraphBuilder, target: object, nodes: Sequence[Node]) -> Node | None:
    if not nodes:
        return None
    return reduce(lambda a, b: builder.apply(target, {"0": a, "1": b}), nodes)


class _Places:
    """Inserts places of keys, int64 [B or 1, S]."""

    def __init__(self, builder: GraphBuilder, queries: int | Node, keys: int | Node) -> None:
        self._builder, self._queries, self._keys = builder, queries, keys

    def of(self, edge: Edge) -> Node:
        """Return where an edge is."""
        call = self._builder.call
        at = self._counted(edge)
        if edge.chunk > 1:
            whole = call(aten.div.Tensor_mode, at, edge.chunk, rounding_mode="floor")
            at = call(aten.mul.Scalar, whole, edge.chunk)
        if edge.offset:
            at = call(aten.add.Scalar, at, edge.offset)
        if isinstance(edge.at_least, Node):
            least = call(
                aten.reshape.default, self._builder.cast(edge.at_least, torch.int64), [-1, 1]
            )
            at = call(aten.maximum.default, at, least)
        elif edge.at_least is not None:
            at = call(aten.clamp.default, at, edge.at_least)
        return at

    def of_documents(self, documents: Node) -> tuple[Node, Node]:
        """Return where the documents of queries begin and end.

        Args:
            documents: Numbers [B, T] that grow by 0 or 1 from key to key.
        """
        call = self._builder.call
        number = self._builder.cast(documents, torch.int64)
        number = call(aten.sub.Tensor, number, call(aten.slice.Tensor, number, 1, 0, 1))
        place = call(aten.expand_as.default, self._arange(self._keys), number)
        own = call(aten.slice.Tensor, number, 1, self._skipped(), _END)
        start = call(aten.full_like.default, number, _END)
        first = call(aten.scatter_reduce.two, start, 1, number, place, "amin")
        last = call(
            aten.scatter_reduce.two, call(aten.zeros_like.default, number), 1, number, place, "amax"
        )
        end = call(aten.add.Scalar, call(aten.gather.default, last, 1, own), 1)
        return call(aten.gather.default, first, 1, own), end

    def _counted(self, edge: Edge) -> Node:
        call, counts = self._builder.call, edge.counts
        if isinstance(counts, Node):
            whole = self._builder.cast(counts, torch.int64)
            sizes = [size for size in shape(whole) if size != 1]
            batch = -1 if len(sizes) > 1 else 1
            return call(aten.reshape.default, whole, [batch, self._queries if batch == -1 else -1])
        index = self._arange(self._queries)
        if counts == "index" or self._queries is self._keys or self._queries == self._keys:
            return index
        return call(aten.add.Tensor, index, self._skipped())

    def _skipped(self) -> int | Node:
        """Return the number of keys before the first query's own."""
        if isinstance(self._keys, int) and isinstance(self._queries, int):
            return self._keys - self._queries
        if self._keys is self._queries:
            return 0
        return self._builder.call(operator.sub, self._keys, self._queries)

    def _arange(self, size: int | Node) -> Node:
        steps = self._builder.call(aten.arange.default, size)
        return self._builder.call(aten.unsqueeze.default, steps, 0)
