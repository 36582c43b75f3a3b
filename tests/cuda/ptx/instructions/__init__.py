"""The instructions, one family a file: importing them fills the registry."""

from tests.cuda.ptx.instructions import (
    atomics,
    compare,
    convert,
    copies,
    floating,
    half,
    integer,
    matrix,
    memory,
    move,
    synchronize,
    warp,
)

__all__ = [
    "atomics",
    "compare",
    "convert",
    "copies",
    "floating",
    "half",
    "integer",
    "matrix",
    "memory",
    "move",
    "synchronize",
    "warp",
]
