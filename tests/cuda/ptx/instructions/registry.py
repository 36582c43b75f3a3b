"""Which function decodes an instruction, by its name; filled by the files beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import DTYPES, Value
from tests.cuda.ptx.errors import Unsupported
from tests.cuda.ptx.layout import Layout
from tests.cuda.ptx.operands import Mask, Read, Write, reader, writer
from tests.cuda.ptx.syntax import Instruction, Operand

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

Step = Callable[["Machine", Mask], None]


@dataclass(frozen=True)
class Decoding:
    """An instruction while it is decoded."""

    instruction: Instruction
    layout: Layout

    @property
    def text(self) -> str:
        return self.instruction.text

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.instruction.operands

    @property
    def type(self) -> str:
        """The last modifier: PTX's name of the type."""
        return self.instruction.modifiers[-1]

    @property
    def dtype(self) -> np.dtype:
        if self.type not in DTYPES:
            raise self.unsupported()
        return DTYPES[self.type]

    def options(self, *known: str) -> set[str]:
        """Return the modifiers in front of the type.

        Raises:
            Unsupported: One of them is not among the known.
        """
        options = set(self.instruction.modifiers[:-1])
        if not options <= set(known):
            raise self.unsupported()
        return options

    def choose(self, *known: str) -> str:
        """Return the one modifier in front of the type, which has to be among the known."""
        options = self.options(*known)
        if len(options) != 1:
            raise self.unsupported()
        return options.pop()

    def choose_of(self, always: str, *known: str) -> str:
        """Return the one modifier that there is beside one that there has to be."""
        options = self.options(always, *known)
        if always not in options or len(options) != 2:
            raise self.unsupported()
        return (options - {always}).pop()

    def read(self, number: int, dtype: np.dtype) -> Read:
        return reader(self.operands[number], dtype, self.layout)

    def write(self, dtype: np.dtype, number: int = 0) -> Write:
        return writer(self.operands[number], dtype)

    def unsupported(self) -> Unsupported:
        return Unsupported(f"not interpreted: {self.text}")


Decoder = Callable[[Decoding], Step]

_DECODERS: dict[str, Decoder] = {}

MemberOperand = Callable[[Instruction], Operand]

# Instructions that the threads of a warp run together, and where they name their members; without
# a name all of the warp are.
COLLECTIVES: dict[str, MemberOperand | None] = {}


def decodes(*names: str) -> Callable[[Decoder], Decoder]:
    """Register a decoder for instructions."""

    def register(decoder: Decoder) -> Decoder:
        for name in names:
            if name in _DECODERS:
                raise ValueError(f"two decoders for {name}")
            _DECODERS[name] = decoder
        return decoder

    return register


def collective(name: str, members: MemberOperand | None) -> None:
    """Say that an instruction is run by the threads of a warp together."""
    COLLECTIVES[name] = members


def decoder_of(instruction: Instruction) -> Decoder:
    """Return the decoder of an instruction.

    Raises:
        Unsupported: There is none.
    """
    if instruction.name not in _DECODERS:
        raise Unsupported(f"not interpreted: {instruction.text}")
    return _DECODERS[instruction.name]


def elementwise(
    decoding: Decoding,
    function: Callable[..., Value],
    sources: tuple[np.dtype, ...],
    result: np.dtype,
) -> Step:
    """Return a step that computes operand 0 from the ones behind it, each thread for itself."""
    if len(decoding.operands) != 1 + len(sources):
        raise decoding.unsupported()
    write = decoding.write(result)
    reads = [decoding.read(number, dtype) for number, dtype in enumerate(sources, 1)]
    if len(reads) == 1:
        return _unary(write, function, *reads)
    if len(reads) == 2:
        return _binary(write, function, *reads)
    return _nary(write, function, reads)


def _unary(write: Write, function: Callable[..., Value], a: Read) -> Step:
    def step(machine: Machine, mask: Mask) -> None:
        write(machine, function(a(machine.registers)), mask)

    return step


def _binary(write: Write, function: Callable[..., Value], a: Read, b: Read) -> Step:
    def step(machine: Machine, mask: Mask) -> None:
        registers = machine.registers
        write(machine, function(a(registers), b(registers)), mask)

    return step


def _nary(write: Write, function: Callable[..., Value], reads: list[Read]) -> Step:
    def step(machine: Machine, mask: Mask) -> None:
        registers = machine.registers
        write(machine, function(*[read(registers) for read in reads]), mask)

    return step
