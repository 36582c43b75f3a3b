"""Follow single elements through operators that only move them, by moving numbers in their place.

Windows can be cut out of an image in very many ways: `unfold`, slices of a padded image, a gather
by index. They all only move elements. Moving the elements' own positions tells what was moved
where, whatever it was written with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.builder import NotCoveredError
from moh_deploy.frontend.fx.graph import (
    argument,
    computed,
    example_shape,
    hint,
    is_tensor,
    op,
    reads_first,
)
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import casts, is_view

_PARTS = ("getitem", "slice", "narrow", "select", "im2col", "unfold", *SPLITS)
_REPEATS = ("expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave")
_JOINS = ("cat", "stack", "slice_scatter", "select_scatter", "copy")
_PADS = ("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
_MOVES = frozenset((*_PARTS, *_REPEATS, *_JOINS, *_PADS, "roll", "flip"))
_GATHERS = frozenset(["index", "index_select", "gather"])
# 512 MiB of float64 at a time.
_MOST_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Elements:
    """A tensor as elements of another one.

    Attributes:
        source: The tensor that they come from.
        index: For each element its flat index in `source`; -1 where it is 0.
    """

    source: Node
    index: Tensor


def elements_of(node: Node, known: KnownValues) -> Elements | None:
    """Trace a tensor at the example's sizes back to the one that it was moved from.

    Returns:
        None where the elements do not all come from one tensor.

    Raises:
        NotCoveredError: If there are too many elements.
    """
    most = max(_count(node), *map(_count, filter(is_tensor, _cone(node, known))))
    if most > _MOST_ELEMENTS:
        raise NotCoveredError(
            f"its windows have {most} elements at the example's sizes, more than are followed:"
            " take a smaller batch for the example"
        )
    # Every tensor that is not itself moved gets numbers of its own, and the operators run on these:
    # what stands in the result says which element of which tensor is there. float64 holds them
    # exactly, and every operator that moves numbers takes it.
    values: dict[Node, object] = {}
    sources: list[tuple[Node, int, int]] = []
    first = 1  # 0 stands for the number 0
    for current in _cone(node, known):
        if _moves(current, known):
            values[current] = _moved(current, values, known)
            continue
        if not is_tensor(current):
            values[current] = hint(current.meta["val"])
            continue
        extents, count = example_shape(current), _count(current)
        if _is_zero(current, known):
            values[current] = torch.zeros(extents, dtype=torch.float64)
            continue
        values[current] = torch.arange(first, first + count, dtype=torch.float64).view(extents)
        sources.append((current, first, first + count))
        first += count
    return _from_one_source(cast(Tensor, values[node]), sources)


def _count(node: Node) -> int:
    return torch.Size(example_shape(node)).numel()


def _from_one_source(moved: Tensor, sources: list[tuple[Node, int, int]]) -> Elements | None:
    # The largest number tells the source; every other one must be its, or 0.
    largest = int(moved.max())
    for source, start, stop in sources:
        if start <= largest < stop:
            index = moved.long() - start
            outside = moved == 0
            if bool(((index >= 0) | outside).all()):
                return Elements(source, index.masked_fill_(outside, -1))
    return None


def _cone(node: Node, known: KnownValues) -> list[Node]:
    """The operators that only move elements, up from `node`, and what they read, sources first."""
    return reads_first(node, lambda inner: _moved_inputs(inner) if _moves(inner, known) else ())


def _is_zero(node: Node, known: KnownValues) -> bool:
    if op(node) in ("zeros", "zeros_like", "new_zeros"):
        return True
    constant = None if known.varies(node) else known(node)
    return constant is not None and not bool(constant.any())


def _moves(node: Node, known: KnownValues) -> bool:
    name = op(node)
    # An index that is made of the input moves elements that nobody knows beforehand.
    if name in _GATHERS:
        return all(index in known for index in node.all_input_nodes if index is not node.args[0])
    if name in ("pad", "constant_pad_nd"):
        # Padding with anything but 0 brings in numbers that are no elements.
        repeats = name == "pad" and argument(node, "mode", "constant") != "constant"
        return repeats or argument(node, "value", 0) in (0, None)
    if is_view(node):
        return not casts(node)
    return name in _MOVES


def _moved_inputs(node: Node) -> list[Node]:
    """All inputs but the indices of a gather, which have to be known."""
    if op(node) in _GATHERS:
        return [source for source in node.all_input_nodes if source is node.args[0]]
    return list(node.all_input_nodes)


def _moved(node: Node, values: dict[Node, object], known: KnownValues) -> object:
    return computed(node, lambda source: values[source] if source in values else known(source))
