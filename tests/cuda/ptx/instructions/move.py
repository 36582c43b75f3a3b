"""mov and cvta: bits go from one register to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import DTYPES, U64, UNSIGNED, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.layout import WINDOWS
from tests.cuda.ptx.operands import Mask, elements, reader, writer
from tests.cuda.ptx.syntax import Vector

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine


@decodes("mov")
def move(decoding: Decoding) -> Step:
    decoding.options()
    target, source = decoding.operands
    if isinstance(target, Vector):
        return _unpack(decoding)
    if isinstance(source, Vector):
        return _pack(decoding)
    return elementwise(decoding, lambda value: value, (decoding.dtype,), decoding.dtype)


def _unpack(decoding: Decoding) -> Step:
    """Divide a register; the first element is lowest."""
    targets = elements(decoding.operands[0])
    whole = UNSIGNED[decoding.dtype.itemsize]
    part = UNSIGNED[whole.itemsize // len(targets)]
    read = decoding.read(1, whole)
    writes = [writer(target, part) for target in targets]
    shifts = [whole.type(8 * part.itemsize * number) for number in range(len(targets))]

    def step(machine: Machine, mask: Mask) -> None:
        value = read(machine.registers)
        for write, shift in zip(writes, shifts, strict=True):
            write(machine, (value >> shift).astype(part), mask)

    return step


def _pack(decoding: Decoding) -> Step:
    sources = elements(decoding.operands[1])
    whole = UNSIGNED[decoding.dtype.itemsize]
    part = UNSIGNED[whole.itemsize // len(sources)]
    reads = [reader(source, part, decoding.layout) for source in sources]
    shifts = [whole.type(8 * part.itemsize * number) for number in range(len(sources))]
    write = decoding.write(whole)

    def step(machine: Machine, mask: Mask) -> None:
        value: Value = whole.type(0)
        for read, shift in zip(reads, shifts, strict=True):
            value = value | (read(machine.registers).astype(whole) << shift)
        write(machine, value, mask)

    return step


@decodes("cvta")
def convert_address(decoding: Decoding) -> Step:
    """Between addresses of a space and generic ones: those of a space have a window."""
    *options, space, type_ = decoding.instruction.modifiers
    dtype = DTYPES[type_]
    if options not in ([], ["to"]) or dtype.itemsize != 8:
        raise decoding.unsupported()
    window = np.uint64(WINDOWS.get(space, 0))
    shift = np.subtract if options else np.add
    return elementwise(decoding, lambda value: shift(value, window), (U64,), U64)
