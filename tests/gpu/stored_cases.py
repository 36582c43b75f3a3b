"""Contract cases in one file: a machine with a GPU needs nothing but torch and numpy to read it.

    python -m tests.gpu.prepare    writes it, where moh-deploy and its dependencies are installed

Numbers are stored as bytes with the name of their dtype, since numpy knows no bfloat16.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.gpu.build import BUILDS

if TYPE_CHECKING:
    import torch

CASES = BUILDS / "cases.npz"
HINT = "`python -m tests.gpu.prepare` writes it, where moh-deploy is installed; bring it along."


class OtherVersion(Exception):
    """The file is not of the form that these tests read."""


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
        import torch

        flat = torch.from_numpy(self.data.copy())
        return flat.view(getattr(torch, self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class Tolerance:
    """|got - reference| <= absolute + relative * |reference|."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class StoredCase:
    """One run of an op, with what the float64 reference says of it."""

    name: str
    op: str
    dtype: str
    attributes: dict[str, int | float | str]
    tensors: tuple[StoredTensor | None, ...]
    reference: np.ndarray
    tolerance: Tolerance

    def find_mismatch(self, got: torch.Tensor) -> str | None:
        """Say where an output is wrong, or return None: see moh_deploy/ops/cases.py."""
        result = got.double().cpu().numpy().reshape(self.reference.shape)
        expected, tolerance = self.reference, self.tolerance
        nan, zero = np.isnan(expected), expected == 0
        with np.errstate(invalid="ignore"):
            allowed = tolerance.absolute + tolerance.relative * np.abs(expected)
            near = np.abs(result - expected) <= allowed
        right = np.where(nan, np.isnan(result), np.where(zero, result == 0, near))
        right |= np.isinf(expected) & (result == expected)
        if right.all():
            return None
        worst = tuple(int(i) for i in np.argwhere(~right)[0])
        return (
            f"{int((~right).sum())} of {right.size} elements are wrong; at {list(worst)}"
            f" got {result[worst]:.6g}, expected {expected[worst]:.6g}"
        )


@dataclass(frozen=True)
class StoredPrimitive:
    """What a primitive is tried on, and what its formula says; uint32 [blocks, words of a block].

    Attributes:
        ulps: How many units in the last place a float32 output may be off; 0: no bit may be.
    """

    words_in: np.ndarray
    words_out: np.ndarray
    ulps: int


class StoredCases:
    """The file, of which a case is read when it is asked for."""

    def __init__(self, path: Path = CASES) -> None:
        # Read as a whole: nobody has to close it.
        self._file = np.load(io.BytesIO(path.read_bytes()))
        if "tolerances" not in self._file.files:
            raise OtherVersion(f"{path} was written by another version: {HINT}")
        self._headers = json.loads(str(self._file["headers"]))
        self._primitives = json.loads(str(self._file["primitives"]))
        self._tolerances = json.loads(str(self._file["tolerances"]))

    @property
    def names(self) -> list[tuple[str, str, str]]:
        """Name, op and dtype of each case."""
        return [(header["name"], header["op"], header["dtype"]) for header in self._headers]

    @property
    def primitives(self) -> list[str]:
        return list(self._primitives)

    def tolerance(self, dtype: str) -> Tolerance:
        """Return that of an attention whose numbers are of order 1."""
        return Tolerance(*self._tolerances[dtype])

    def case(self, index: int) -> StoredCase:
        header = dict(self._headers[index])
        tensors = tuple(
            None
            if item is None
            else StoredTensor(self._file[f"{index}/{i}"], tuple(item[0]), item[1])
            for i, item in enumerate(header.pop("tensors"))
        )
        tolerance = Tolerance(*header.pop("tolerance"))
        reference = self._file[f"{index}/reference"]
        return StoredCase(**header, tensors=tensors, reference=reference, tolerance=tolerance)

    def primitive(self, name: str) -> StoredPrimitive:
        words = (self._file[f"primitive/{name}/{end}"] for end in ("in", "out"))
        return StoredPrimitive(*words, ulps=self._primitives[name])
