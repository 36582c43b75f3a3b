"""Turn choices at some sizes, measured or predicted, into ranges of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from moh_deploy.package import Choice, LayerInfo, SizeRange, current_choice, measure, with_ranges

# About what a choice by size costs in a layer, an If around each of its operators: a gain that is
# smaller is none.
SWITCH_MS = 0.005


def by_size(
    layer: LayerInfo, sizes: Sequence[Mapping[str, int]], choices: Sequence[Choice]
) -> LayerInfo | None:
    """Return a layer with ranges that give it the choice of each run.

    Args:
        layer: The layer.
        sizes: Dimension sizes of the runs.
        choices: The choice in each.

    Returns:
        The layer, without ranges if all choices are the same; None if no dimension, and no product
        of some, tells the runs apart.
    """
    found = (_by_one(layer, size, sizes, choices) for size in _measures(sizes))
    # Each range is an If around nodes. Of equals the first is kept, so single dimensions win over
    # products, which are harder to read.
    known = [layer for layer in found if layer is not None]
    return min(known, key=lambda item: len(item.ranges), default=None)


def _measures(sizes: Sequence[Mapping[str, int]]) -> Iterator[str]:
    """Yield the sizes that runs differ in: single dimensions first, then products."""
    names = [name for name in sizes[0] if len({size[name] for size in sizes}) > 1]
    # What is compared at run time is a product of dynamic dimensions (ADR 11): `batch*seq` stands
    # for the number of tokens.
    for count in range(1, len(names) + 1):
        yield from map("*".join, combinations(names, count))
    # All runs have the same sizes, so nothing may tell them apart: they must agree on a choice.
    if not names:
        yield ""


def _by_one(
    layer: LayerInfo, size: str, sizes: Sequence[Mapping[str, int]], choices: Sequence[Choice]
) -> LayerInfo | None:
    """Return the layer with a range for each stretch of values of a size that share a choice; None
    where runs of one value disagree.

    Nothing is known between two values: the boundary is their geometric mean.
    """
    steps: dict[int, Choice] = {}
    for at, choice in zip(sizes, choices, strict=True):
        # The value of `size` in this run, such as 512 for `seq` or 1024 for `batch*seq`.
        value = measure(size, at) if size else 1
        if steps.setdefault(value, choice) != choice:
            return None
    rising = sorted(steps.items())
    ranges = [
        SizeRange(size, math.isqrt(low * high), choice)
        for (low, choice), (high, other) in pairwise(rising)
        if choice != other
    ]
    # The choice at the largest value also holds beyond it, and needs no range of its own.
    return with_ranges(replace(layer, choice=rising[-1][1]), ranges)


def dense_at(
    layer: LayerInfo, sizes: Sequence[Mapping[str, int]], slower: Sequence[int]
) -> LayerInfo | None:
    """Return a layer that is dense in some runs, by their numbers, and as it was in the others.

    None if nothing tells them apart.
    """
    choices = [current_choice(layer, at) for at in sizes]
    # It was not replaced: there is nothing to choose, and it computes every head anyway.
    if None in choices:
        return layer
    return by_size(
        layer,
        sizes,
        ["dense" if i in slower else choice for i, choice in enumerate(choices) if choice],
    )
