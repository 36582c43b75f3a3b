"""The inputs of a model at other sizes of its dynamic dimensions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.examples import example_sizes, parsed_dims
from moh_deploy.frontend.load.model import ModelInput

_MOST_IDS = 1 << 17
"""Above that, integers are no tokens but images, and to look at each one takes long."""


def resize_inputs(
    inputs: Sequence[ModelInput], sizes: Mapping[str, int], *, new_ids: bool = True
) -> tuple[ModelInput, ...]:
    """Return the same inputs at other dimension sizes.

    Each dynamic axis is cropped, or extended by starting again at its first entry, so that the
    values stay those of the example: ids stay legal, masks stay masks. What is repeated differs a
    little: where a model ranks tokens, equal ones are a tie, which each runtime breaks in its own
    way. Numbers that are not whole become smaller, by up to a quarter, and ids others between the
    smallest and the largest. Dimensions that `sizes` leaves out keep their size.

    Args:
        sizes: Dimension name to its new size.
        new_ids: Whether ids may become others. A model may need those of the example: so many
            places of an image in a text.

    Raises:
        ConfigError: A name is no dimension of the inputs, or an axis would become smaller than 0.
    """
    known = example_sizes(inputs)
    for name in sizes.keys() - known.keys():
        raise ConfigError(
            f"no input has a dimension '{name}'; there are: {', '.join(known) or 'none'}."
        )
    return tuple(_resized(item, {**known, **sizes}, new_ids) for item in inputs)


def _resized(item: ModelInput, sizes: Mapping[str, int], new_ids: bool) -> ModelInput:
    value = item.value
    for axis, expr in parsed_dims(item).items():
        size = expr.evaluate(sizes)
        if size < 0:
            raise ConfigError(
                f"axis {axis} of input '{item.name}' ('{expr}') would have size {size} with"
                f" {expr.name}={sizes[expr.name]}; a size must be at least 0."
            )
        known = value.shape[axis]
        value = value.index_select(axis, torch.arange(size) % known)
        if size > known and value.is_floating_point():
            value = _with_other_numbers(value, axis, known)
        elif size > known and new_ids and not item.says_valid:
            value = _with_other_ids(value, axis, known)
    return replace(item, value=value)


def _with_other_numbers(repeated: torch.Tensor, axis: int, known: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(axis)
    factors = 1 - torch.rand(repeated.shape, generator=generator) / 4
    factors.narrow(axis, 0, known).fill_(1)
    return torch.where(
        repeated == repeated.round(), repeated, repeated * factors.to(repeated.dtype)
    )


def _with_other_ids(repeated: torch.Tensor, axis: int, known: int) -> torch.Tensor:
    """Return the same with integers beyond `known` that are in no line of the tensor yet.

    Masks, kinds of tokens and positions stay as they are: two values, or all between two in order.
    """
    used = torch.unique(repeated)
    if repeated.dtype == torch.bool or len(used) < 3 or repeated.numel() > _MOST_IDS:
        return repeated
    low, count = int(used[0]), int(used[-1]) - int(used[0]) + 1
    steps = repeated.narrow(axis, 0, known).diff(dim=-1)
    if count == len(used) and bool((steps >= 0).all() or (steps <= 0).all()):
        return repeated
    draw = random.Random(axis)
    values = repeated.numpy(force=True).copy()
    lines: dict[tuple[int | None, ...], set[int]] = {}
    new = []
    for place in product(*map(range, values.shape)):
        if place[axis] >= known:
            new.append(place)
            continue
        for line in _lines(place):
            lines.setdefault(line, set()).add(int(values[place]))
    for place in new:
        through = [lines.setdefault(line, set()) for line in _lines(place)]
        first = draw.randrange(count)
        tries = min(count, 1 + sum(map(len, through)))
        candidates = (low + (first + step) % count for step in range(tries))
        free = (
            candidate
            for candidate in candidates
            if not any(candidate in values_there for values_there in through)
        )
        values[place] = value = next(free, int(values[place]))
        for known_values in through:
            known_values.add(value)
    return torch.from_numpy(values)


def _lines(place: tuple[int, ...]) -> Iterator[tuple[int | None, ...]]:
    """Yield the lines of a tensor that go through a place, one along each axis."""
    for axis in range(len(place)):
        yield (*place[:axis], None, *place[axis + 1 :])
