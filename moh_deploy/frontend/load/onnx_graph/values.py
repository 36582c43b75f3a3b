"""What travels between the nodes of a graph: tensors, and tensors whose elements are numbers.

ONNX computes sizes with tensors: `Shape`, `Gather`, `Mul`, `Concat`, then `Reshape` with the
result. While torch.export traces, a size is a Python number or a symbol, and has to stay one, or
its dimension would be fixed. So what `Shape` makes, and what is computed from it, is `Known`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch

ExactNumber: TypeAlias = int | float | bool
"""Or a symbol of torch, which its own type hints call a number, too; see `is_symbol`."""


@dataclass(frozen=True)
class Known:
    """A small tensor whose elements are known as Python numbers, or as symbols.

    Attributes:
        numbers: Of numpy's dtype `object`, in the tensor's shape.
        dtype: Of the tensor.
        stored: The tensor itself, for a constant of the model.
    """

    numbers: np.ndarray
    dtype: torch.dtype
    stored: torch.Tensor | None = None

    @classmethod
    def of(cls, numbers: Sequence[ExactNumber], dtype: torch.dtype = torch.int64) -> Known:
        """Return a tensor of one axis."""
        return cls(objects(numbers), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def flat(self) -> list[ExactNumber]:
        """Return all numbers in order."""
        return cast(list[ExactNumber], list(self.numbers.flat))

    def tensor(self) -> torch.Tensor:
        """Return the tensor that it stands for."""
        if self.stored is not None:
            return self.stored
        numbers = self.flat()
        if not any(map(is_symbol, numbers)):
            return torch.tensor(numbers, dtype=self.dtype).reshape(self.shape)
        scalars = [torch.scalar_tensor(number, dtype=self.dtype) for number in numbers]
        return torch.stack(scalars).reshape(self.shape) if self.shape else scalars[0]


NodeValue: TypeAlias = torch.Tensor | Known

MOST_NUMBERS = 64
"""Larger constants are tensors alone: no shape has so many axes, and no list of indices of a graph
that was written out is longer where it matters."""


def objects(numbers: Iterable[ExactNumber]) -> np.ndarray:
    """Return numbers, symbols among them, as an array of one axis that leaves them as they are."""
    listed = list(numbers)
    array = np.empty(len(listed), dtype=object)
    for index, number in enumerate(listed):
        array[index] = number
    return array


def is_symbol(number: object) -> bool:
    """Tell a size or a sum of sizes that is known only when the model runs."""
    return isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool))


def as_tensor(value: NodeValue) -> torch.Tensor:
    return value.tensor() if isinstance(value, Known) else value
