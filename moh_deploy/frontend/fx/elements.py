"""Follow single elements through operators that only move them, by moving numbers in their place.

Windows can be cut out of an image in very many ways: `unfold`, slices of a padded image, a gather
by index. They all only move elements. Moving the elements' own positions tells what was moved
where, whatever it was written with.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.builder import NotCoveredError
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
    """A tensor as elements of another one."""

    source: Node  # the tensor that they come from
    index: Tensor  # for each element its flat index in `source`; -1 where it is 0


def elements_of(node: Node, known: KnownValues) -> Elements | None:
    """Trace a tensor at the example's sizes back to the one that it was moved from.

    Returns:
        None where the elements do not all come from one tensor.

    Raises:
        NotCoveredError: If there are too many elements.
    """

    def moved_from(inner: Node) -> list[Node]:
        # Not the indices of a gather, which have to be known.
        inputs = inner.all_input_nodes if _moves(inner, known) else ()
        return [n for n in inputs if n is inner.args[0] or graph.op(inner) not in _GATHERS]

    cone = graph.reads_first(node, moved_from)
    most = max(
        torch.Size(graph.example_shape(n)).numel() for n in (node, *filter(graph.is_tensor, cone))
    )
    if most > _MOST_ELEMENTS:
        raise NotCoveredError(
            f"its windows have {most} elements at the example's sizes, more than are followed:"
            " take a smaller batch for the example"
        )
    # Every tensor that is not itself moved gets numbers of its own, and the operators run on these:
    # what stands in the result tells the tensor and the element. float64 holds them
    # exactly, and every operator that moves numbers takes it.
    values: dict[Node, object] = {}
    sources: list[tuple[Node, int, int]] = []
    first = 1  # 0 stands for the number 0
    for current in cone:
        if _moves(current, known):
            values[current] = graph.computed(
                current, lambda n: values[n] if n in values else known(n)
            )
        elif not graph.is_tensor(current):
            values[current] = graph.hint(current.meta["val"])
        else:
            extents = graph.example_shape(current)
            count = torch.Size(extents).numel()
            constant = None if known.varies(current) else known(current)
            is_zero = graph.op(current) in ("zeros", "zeros_like", "new_zeros")
            if is_zero or (constant is not None and not bool(constant.any())):
                values[current] = torch.zeros(extents, dtype=torch.float64)
                continue
            numbers = torch.arange(first, first + count, dtype=torch.float64)
            values[current] = numbers.view(extents)
            sources.append((current, first, first + count))
            first += count
    # The largest number tells the source; every other one must be its, or 0.
    moved = cast(Tensor, values[node])
    largest, outside = int(moved.max()), moved == 0
    for source, start, stop in sources:
        index = moved.long() - start
        if start <= largest < stop and bool(((index >= 0) | outside).all()):
            return Elements(source, index.masked_fill_(outside, -1))
    return None


def _moves(node: Node, known: KnownValues) -> bool:
    name = graph.op(node)
    # An index that is made of the input moves elements that are unknown beforehand.
    if name in _GATHERS:
        return all(index in known for index in node.all_input_nodes if index is not node.args[0])
    if name in ("pad", "constant_pad_nd"):
        # Padding with anything but 0 brings in numbers that are no elements.
        repeats = name == "pad" and graph.argument(node, "mode", "constant") != "constant"
        return repeats or graph.argument(node, "value", 0) in (0, None)
    if is_view(node):
        return not casts(node)
    return name in _MOVES
