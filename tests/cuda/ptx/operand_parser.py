"""Text of an operand -> Operand."""

import re

from tests.cuda.ptx.errors import SyntaxFault
from tests.cuda.ptx.syntax import (
    Address,
    Immediate,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

_INTEGER = re.compile(r"(-?(?:0[xX][0-9a-fA-F]+|\d+))U?$")
_FLOAT_BITS = re.compile(r"0[fF]([0-9a-fA-F]+)$")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
_RANGE = re.compile(r"(%?[\w$]+)<(\d+)>$")


class Scopes:
    """Names of registers: those of an inner block hide those around it.

    Attributes:
        types: Of each register, by index.
    """

    def __init__(self) -> None:
        self.types: list[str] = []
        self._scopes: list[dict[str, Register]] = [{}]

    def enter(self) -> None:
        self._scopes.append({})

    def leave(self) -> None:
        self._scopes.pop()

    def declare(self, type_: str, names: str) -> None:
        """Declare the registers of one .reg."""
        for name in split_operands(names):
            match = _RANGE.match(name)
            if match is None:
                self._add(name, type_)
            else:
                for index in range(int(match[2])):
                    self._add(f"{match[1]}{index}", type_)

    def find(self, name: str) -> Register | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None

    def _add(self, name: str, type_: str) -> None:
        self._scopes[-1][name] = Register(len(self.types), type_)
        self.types.append(type_)


def split_operands(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    if "{" not in text and "[" not in text:
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def parse_operand(text: str, scopes: Scopes) -> Operand:
    """Parse an operand.

    Raises:
        SyntaxFault: It is not understood.
    """
    if text.startswith("{"):
        inner = split_operands(text[1:-1].strip())
        return Vector(tuple(parse_operand(element, scopes) for element in inner))
    if text.startswith("["):
        return _address(text, scopes)
    if text == "_":
        return Sink()
    if "|" in text:
        first, second = text.split("|")
        return Pair(parse_operand(first.strip(), scopes), parse_operand(second.strip(), scopes))
    return _number(text) or _name(text, scopes)


def _address(text: str, scopes: Scopes) -> Address:
    match = _ADDRESS.match(text)
    if match is None:
        raise SyntaxFault(f"not an address: {text!r}")
    base = _number(match[1]) or _name(match[1], scopes)
    if not isinstance(base, (Register, Symbol, Immediate)):
        raise SyntaxFault(f"not an address: {text!r}")
    return Address(base, int(match[2] or "0", 0))


def _number(text: str) -> Immediate | None:
    match = _INTEGER.match(text)
    if match is not None:
        return Immediate(int(match[1], 0))
    match = _FLOAT_BITS.match(text)
    return None if match is None else Immediate(int(match[1], 16), is_float=True)


def _name(text: str, scopes: Scopes) -> Operand:
    negated = text.startswith("!")
    name = text.lstrip("!")
    register = scopes.find(name)
    if register is not None:
        return Register(register.index, register.type, negated)
    if name.startswith("%"):
        return Special(name)
    if re.fullmatch(r"[$\w]+", name):
        return Symbol(name)
    raise SyntaxFault(f"not an operand: {text!r}")
