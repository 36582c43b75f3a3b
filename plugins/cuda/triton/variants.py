"""Which kernels are compiled, and in which shape. Needs no Triton.

A kernel is for heads of up to `columns`, and computes as many columns: sizes are powers of two, as
Triton's blocks are. It pays where the head fills them (launch/attention_kernel.cu).
"""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURES = (90, 100)
"""Compute capabilities. Code for them runs on no other: each has matrix units of its own."""

DTYPES = {"float16": "fp16", "bfloat16": "bf16"}
"""Names of ours and of Triton's. float32 has no product on those units that is exact enough."""


@dataclass(frozen=True)
class Shape:
    """How the work is divided.

    Attributes:
        columns: Of queries and values.
        tile_rows: Rows of a block.
        tile_keys: Keys at a time.
        warps: Of a block: one group of 4 for 64 rows.
        stages: Tiles of keys and values that are on their way at a time.
    """

    columns: int
    tile_rows: int
    tile_keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Variant:
    """One kernel of the library."""

    architecture: int
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        return f"sm_{self.architecture} {self.dtype} {self.shape.columns}"


SHAPES = (
    Shape(columns=64, tile_rows=128, tile_keys=64, warps=8, stages=3),
    Shape(columns=128, tile_rows=128, tile_keys=64, warps=8, stages=3),
)

VARIANTS = tuple(
    Variant(architecture, dtype, shape)
    for architecture in ARCHITECTURES
    for dtype in DTYPES
    for shape in SHAPES
)
