"""ldmatrix and mma."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import F32, F64, U16, U32, Value
from tests.cuda.ptx.instructions.memory import safe, shared_access
from tests.cuda.ptx.instructions.registry import Decoding, Step, collective, decodes
from tests.cuda.ptx.instructions.rounding import bfloat16_to_float32, towards_zero
from tests.cuda.ptx.operands import Mask, address_reader, elements, reader, writer
from tests.cuda.ptx.syntax import Operand

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

WARP = 32
_LANE = np.arange(WARP)
_ROW = 16  # bytes

collective("ldmatrix", None)
collective("mma", None)


@decodes("ldmatrix")
def load_matrices(decoding: Decoding) -> Step:
    """Lane l names row l % 8 of matrix l / 8, and gets the pair at row l / 4, columns 2 (l % 4)."""
    options = decoding.options("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared")
    targets = elements(decoding.operands[0])
    count = len(targets)
    if decoding.type != "b16" or not {"sync", "aligned", "m8n8", f"x{count}", "shared"} <= options:
        raise decoding.unsupported()
    writes = [writer(target, U32) for target in targets]
    read = address_reader(decoding.operands[1], decoding.layout)
    gather = _gather_transposed if "trans" in options else _gather
    names_row, text = np.arange(WARP) < 8 * count, decoding.text

    def step(machine: Machine, mask: Mask) -> None:
        named = np.tile(names_row, machine.lanes // WARP)
        used = named if mask is None else named & mask
        addresses = safe(machine.spread(read(machine.registers)), used)
        start = machine.shared.index(addresses, 2, _ROW, text).reshape(-1, WARP)
        if machine.races is not None:
            machine.races.read(shared_access(machine, machine.races, addresses, _ROW, used, text))
        view = machine.shared.view(U16)
        for number, write in enumerate(writes):
            rows = start[:, 8 * number : 8 * number + 8]
            write(machine, gather(view, rows).reshape(-1), mask)

    return step


def _gather(view: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the pairs of a matrix by lane, [warps, 32], from where its rows begin, [warps, 8]."""
    pairs: np.ndarray = view.view(U32).take((rows[:, _LANE // 4] >> 1) + _LANE % 4)
    return pairs


def _gather_transposed(view: np.ndarray, rows: np.ndarray) -> np.ndarray:
    low = view.take(rows[:, 2 * (_LANE % 4)] + _LANE // 4).astype(U32)
    high = view.take(rows[:, 2 * (_LANE % 4) + 1] + _LANE // 4).astype(U32)
    pairs: np.ndarray = low | (high << np.uint32(16))
    return pairs


@decodes("mma")
def multiply_matrices(decoding: Decoding) -> Step:
    """d = a b + c: as exact as float64 is, then cut off to float32, as the hardware does."""
    modifiers = decoding.instruction.modifiers
    for depth, number in (("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "tf32")):
        form = ("sync", "aligned", depth, "row", "col", "f32", number, number, "f32")
        if modifiers == form:
            return _mma(decoding, number)
    raise decoding.unsupported()


def _mma(decoding: Decoding, number: str) -> Step:
    d, a, b, c = (elements(operand) for operand in decoding.operands)
    if (len(d), len(a), len(b), len(c)) != (4, 4, 2, 4):
        raise decoding.unsupported()
    read_a, read_b = (_bits_reader(decoding, operands) for operands in (a, b))
    read_c = [reader(operand, F32, decoding.layout) for operand in c]
    writes = [writer(operand, F32) for operand in d]

    def step(machine: Machine, mask: Mask) -> None:
        left = _matrix(read_a(machine), number)  # [warps, 16, k]
        right = _matrix(read_b(machine), number)  # [warps, 8, k]
        product = left @ right.transpose(0, 2, 1)  # [warps, 16, 8]
        parts = product.reshape(-1, 2, 8, 4, 2)  # rows by halves, columns by pairs
        sums = [read(machine.registers) for read in read_c]
        for index, write in enumerate(writes):
            part = parts[:, index >> 1, :, :, index & 1].reshape(-1)
            write(machine, towards_zero(part + sums[index]), mask)

    return step


def _bits_reader(
    decoding: Decoding, operands: tuple[Operand, ...]
) -> Callable[[Machine], np.ndarray]:
    """Return what reads a fragment: [warps, rows, columns in units of 32 bits].

    Register 0 has the upper left part of 8 rows and 4 columns, 1 the lower left one of a, or the
    right one of b, and so on.
    """
    reads = [reader(operand, U32, decoding.layout) for operand in operands]
    places = [(0, 0), (8, 0), (0, 4), (8, 4)] if len(reads) == 4 else [(0, 0), (0, 4)]
    rows = 16 if len(reads) == 4 else 8

    def read(machine: Machine) -> np.ndarray:
        warps = machine.lanes // WARP
        bits = np.empty((warps, rows, 8), np.uint32)
        for part, (row, column) in zip(reads, places, strict=True):
            value = machine.spread(part(machine.registers)).reshape(warps, 8, 4)
            bits[:, row : row + 8, column : column + 4] = value
        return bits

    return read


def _matrix(bits: np.ndarray, number: str) -> Value:
    if number == "tf32":
        # The lower 13 bits are not looked at.
        return (bits & np.uint32(0xFFFFE000)).view(F32).astype(F64)
    halves = bits.view(U16)
    if number == "bf16":
        return bfloat16_to_float32(halves).astype(F64)
    return halves.view(np.float16).astype(F64)
