"""Contract cases in one file: a machine with a GPU needs nothing but torch and numpy to read it.

    python -m tests.gpu.prepare    writes it, where moh-deploy and its dependencies are installed

Numbers are stored as bytes with the name of their dtype, since numpy knows no bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.gpu.build import BUILDS

CASES = BUILDS / "cases.npz"


@dataclass(frozen=True)
class StoredTensor:
    """Bytes of a tensor; absent tensors have none.

    Attributes:
        dtype: `float32`, `bfloat16`, `bool`, ...
    """

    data: np.ndarray
    shape: tuple[int, ...]
    dtype: str

    def to_torch(self) -> torch.Tensor:
        flat = torch.from_numpy(self.data.copy())
        return flat.view(getattr(torch, self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class StoredCase:
    """One run of an op, with what the float64 reference says of it.

    Attributes:
        specified: Which elements of the output mean something.
    """

    name: str
    op: str
    dtype: str
    attributes: dict[str, int | float | str]
    tensors: tuple[StoredTensor | None, ...]
    reference: np.ndarray
    absolute: float
    relative: float

    def find_mismatch(self, got: torch.Tensor) -> str | None:
        """Say where an output is wrong, or return None: see moh_deploy/ops/contract.py."""
        result = got.double().cpu().numpy().reshape(self.reference.shape)
        expected = self.reference
        nan, zero = np.isnan(expected), expected == 0
        with np.errstate(invalid="ignore"):
            near = np.abs(result - expected) <= self.absolute + self.relative * np.abs(expected)
        right = np.where(nan, np.isnan(result), np.where(zero, result == 0, near))
        right |= np.isinf(expected) & (result == expected)
        if right.all():
            return None
        worst = tuple(int(i) for i in np.argwhere(~right)[0])
        return (
            f"{self.name}: {int((~right).sum())} of {right.size} elements are wrong; at"
            f" {list(worst)} got {result[worst]:.6g}, expected {expected[worst]:.6g}"
        )


def read_cases(path: Path = CASES) -> Iterator[StoredCase]:
    """Yield the cases in the order in which they were stored."""
    with np.load(path) as file:
        for index, header in enumerate(json.loads(str(file["headers"]))):
            tensors = tuple(
                None if one is None else StoredTensor(file[f"{index}/{i}"], tuple(one[0]), one[1])
                for i, one in enumerate(header.pop("tensors"))
            )
            yield StoredCase(**header, tensors=tensors, reference=file[f"{index}/reference"])
