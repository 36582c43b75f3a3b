"""Operands -> functions that read and write them.

Reading takes the registers of a machine and returns a Value; writing keeps the old value of the
threads that are not in the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import BOOL, DTYPES, UNSIGNED, Value, reinterpret, widened
from tests.cuda.ptx.errors import SyntaxFault
from tests.cuda.ptx.layout import Layout
from tests.cuda.ptx.syntax import (
    Address,
    Immediate,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

Mask = np.ndarray | None
"""The threads that take part: None if all of the machine do."""

Read = Callable[[Sequence[Value]], Value]
Write = Callable[["Machine", Value, Mask], None]


def reader(operand: Operand, dtype: np.dtype, layout: Layout) -> Read:
    """Return what reads an operand as a type."""
    if isinstance(operand, Register):
        return _read_predicate(operand) if dtype is BOOL else _read_register(operand.index, dtype)
    if isinstance(operand, Special):
        return _read_register(layout.special(operand.name), dtype)
    if isinstance(operand, Immediate):
        return _read_constant(constant(operand, dtype))
    if isinstance(operand, Symbol):
        return _read_constant(dtype.type(layout.address(operand.name)))
    raise SyntaxFault(f"{operand} cannot be read as {dtype}.")


def address_reader(operand: Operand, layout: Layout) -> Read:
    """Return what reads an address, [base + offset], as 64 bits without a sign."""
    if not isinstance(operand, Address):
        raise SyntaxFault(f"{operand} is no address.")
    if isinstance(operand.base, Register):
        dtype = DTYPES[operand.base.type]
        return _read_sum(operand.base.index, UNSIGNED[dtype.itemsize], operand.offset)
    if isinstance(operand.base, Symbol):
        start = layout.address(operand.base.name)
    else:
        start = operand.base.bits
    return _read_constant(np.uint64(start + operand.offset))


def constant(operand: Immediate, dtype: np.dtype) -> Value:
    """Return an immediate as a type."""
    if dtype is BOOL:
        return np.bool_(operand.bits)
    if dtype.kind == "f" and not operand.is_float:
        return dtype.type(operand.bits)
    bits = operand.bits & ((1 << 8 * dtype.itemsize) - 1)
    return UNSIGNED[dtype.itemsize].type(bits).view(dtype)


def elements(operand: Operand) -> tuple[Operand, ...]:
    """Return the elements of a vector, or the operand itself."""
    return operand.elements if isinstance(operand, Vector) else (operand,)


def writer(operand: Operand, dtype: np.dtype) -> Write:
    """Return what writes values of `dtype` to a destination."""
    if isinstance(operand, Sink):
        return _write_nothing
    if not isinstance(operand, Register):
        raise SyntaxFault(f"{operand} is no destination.")
    register_dtype = DTYPES[operand.type]
    if register_dtype is BOOL or register_dtype.itemsize == dtype.itemsize:
        return _write_register(operand.index)
    wide = widened(dtype, register_dtype.itemsize)
    write = _write_register(operand.index)
    return lambda machine, value, mask: write(machine, value.astype(wide), mask)


def _read_register(index: int, dtype: np.dtype) -> Read:
    def read(registers: Sequence[Value]) -> Value:
        value = registers[index]
        return value if value.dtype is dtype else reinterpret(value, dtype)

    return read


def _read_predicate(operand: Register) -> Read:
    index = operand.index
    if operand.negated:
        return lambda registers: ~registers[index]
    return lambda registers: registers[index]


def _read_constant(value: Value) -> Read:
    return lambda registers: value


def _read_sum(index: int, dtype: np.dtype, offset: int) -> Read:
    read = _read_register(index, dtype)
    if offset == 0:
        return lambda registers: read(registers).astype(np.uint64)
    step = dtype.type(offset % 2 ** (8 * dtype.itemsize))
    return lambda registers: (read(registers) + step).astype(np.uint64)


def _write_register(index: int) -> Write:
    def write(machine: Machine, value: Value, mask: Mask) -> None:
        registers = machine.registers
        if mask is not None:
            old = registers[index]
            if old.dtype is not value.dtype:
                old = old.view(value.dtype)
            value = np.where(mask, value, old)
        registers[index] = value

    return write


def _write_nothing(machine: Machine, value: Value, mask: Mask) -> None:
    pass
