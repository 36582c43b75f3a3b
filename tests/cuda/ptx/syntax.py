"""What a PTX module consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Register:
    """A register of an entry; `index` is its own among all of the entry."""

    index: int
    type: str
    negated: bool = False


@dataclass(frozen=True)
class Special:
    """A register that the machine fills, such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A number in the text, or the bits of a float32."""

    bits: int
    is_float: bool = False


@dataclass(frozen=True)
class Symbol:
    """A variable, parameter or label by its name."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Register | Symbol | Immediate
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """a|b: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """_: a destination that nobody reads."""


Operand = Register | Special | Immediate | Symbol | Address | Vector | Pair | Sink


@dataclass(frozen=True)
class Instruction:
    """One instruction: @guard name.modifiers operands."""

    text: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None


@dataclass(frozen=True)
class Variable:
    """A variable in memory: `space` is shared, local or param."""

    name: str
    space: str
    align: int
    size: int
    is_dynamic: bool = False


@dataclass(frozen=True)
class Entry:
    """A kernel.

    Attributes:
        labels: The instruction behind each label.
        register_types: Of each register, by index.
    """

    name: str
    params: tuple[Variable, ...]
    variables: tuple[Variable, ...]
    register_types: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
