"""Inputs to try masks with: other sizes, padding and ids in many places."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Runs, to read all rows of a table.
_MOST_IN_ORDER = 2048


@dataclass(frozen=True)
class MaskTrials:
    """The inputs of a model at many sizes, with other values."""

    values: Sequence[Tensor]  # the example's
    sizes: Mapping[str, int]  # of the example, by dimension
    ranges: Mapping[str, tuple[int, int | None]]  # which a dimension may have
    resize: Callable[[Mapping[str, int]], Sequence[Tensor]]
    # The place of the input that says which tokens are valid, and whether it is 1 for padding.
    valid: tuple[int, bool] | None

    def small(self) -> Iterator[Mapping[str, int]]:
        """Yield the example's sizes, and others that differ from one another."""
        yield self.sizes
        for primes in ((3, 5, 11, 7), (2, 17, 6, 9), (1, 1, 1, 1), (2, 4, 37, 5)):
            yield {
                name: self._within(name, primes[place % 4]) for place, name in enumerate(self.sizes)
            }

    def large(self, size: int, others: int = 1) -> Iterator[Mapping[str, int]]:
        """Yield sizes in which one dimension is this large, where it may be, and others small."""
        least = {name: self._within(name, others) for name in self.sizes}
        for name in self.sizes:
            yield {**least, name: self._within(name, size)}

    def in_order(
        self, sizes: Mapping[str, int], rows: int, queries: int
    ) -> Iterator[Sequence[Tensor]]:
        """Yield inputs of these sizes that count through all rows of a table, unless that takes
        long."""
        resized = self.resize(sizes)
        for start in range(0, rows, queries) if rows <= _MOST_IN_ORDER * queries else ():
            yield [
                value
                if value.is_floating_point() or value.ndim == 0 or is_flags(value)
                else (start + torch.arange(value.shape[-1]))
                .clamp(max=rows - 1)
                .to(value.dtype)
                .expand(value.shape)
                for value in resized
            ]

    def _within(self, name: str, size: int) -> int:
        least, most = self.ranges.get(name, (1, None))
        return max(least, size if most is None else min(size, most))


def is_flags(value: Tensor) -> bool:
    return value.ndim == 2 and bool(((value == 0) | (value == 1)).all())


def kinds_of(
    value: Tensor, compared: Sequence[int], generator: torch.Generator, *, is_summed: bool
) -> list[Tensor]:
    """Return values that an input could have: for masks and ids two neutral ones first.

    Args:
        is_summed: Whether what is 0 or 1 in the example may be more than that.
    """
    if (value.is_floating_point() and not is_flags(value)) or value.ndim == 0 or 0 in value.shape:
        return [value]
    length = value.shape[-1]
    steps = torch.arange(length).expand(value.shape)
    ones, zeros = torch.ones_like(value), torch.zeros_like(value)

    def random(values: Sequence[int]) -> Tensor:
        picked = torch.randint(len(values), value.shape, generator=generator)
        return torch.tensor(values)[picked].to(value.dtype)

    starts = torch.randint(length, (*value.shape[:-1], 1), generator=generator)
    padded = [steps >= starts, steps <= starts, (steps >= starts) & (steps <= starts + length // 2)]
    masks = [
        ones,
        zeros,
        *(mask.to(value.dtype) for mask in padded),
        random([0, 1]),
        random([0, 1]),
    ]
    # More ones than zeros, and the other way round: keys are left that are seen.
    masks += [random([0, 1, 1, 1]), random([0, 0, 0, 1])]
    masks += [1 - mask for mask in masks[2:5]] if value.dtype != torch.bool else []
    if value.dtype == torch.bool:
        return [*masks, *(~mask for mask in masks[2:5])]
    if is_flags(value) and not is_summed:
        return masks
    if value.ndim == 1:
        # Of lengths the neutral ones are longer than all sequences.
        masks[0] = torch.full_like(value, min(torch.iinfo(value.dtype).max, 1 << 24))
    some = random([0, 1, 2, 3, *compared])
    return [
        *masks,
        value,
        some,
        random([0, 1, 2, 3, *compared]),
        some.sort(-1)[0],
        steps.to(value.dtype),
    ]
