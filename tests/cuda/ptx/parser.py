"""Text of a PTX module -> entries. An entry is parsed when it is asked for."""

import re
from collections.abc import Iterator

from tests.cuda.ptx.element_types import DTYPES
from tests.cuda.ptx.errors import SyntaxFault
from tests.cuda.ptx.operand_parser import Scopes, parse_operand, split_operands
from tests.cuda.ptx.syntax import Entry, Instruction, Register, Variable

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*\{")
_VARIABLE = re.compile(
    r"[.\w\s]*\.(shared|local|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?$",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)
_STATEMENT = re.compile(r"\s*(?:([{}])|([$\w]+)\s*:|([^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)", re.S)
_INSTRUCTION = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([\w.:]+)\s*(.*)$", re.S)


class Module:
    """A PTX module.

    Attributes:
        text: Without comments.
        names: Of its entries.
    """

    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub("", text)
        self._heads = {head[1]: head for head in _ENTRY.finditer(self.text)}
        self.names = tuple(self._heads)
        self._variables = {variable.name: variable for variable in self._module_variables()}

    def entry(self, name: str) -> Entry:
        """Parse an entry.

        Raises:
            SyntaxFault: There is none of this name, or its text is not understood.
        """
        if name not in self._heads:
            raise SyntaxFault(f"The module has no entry '{name}'. It has: {', '.join(self.names)}.")
        head = self._heads[name]
        body = self.text[head.end() : _closing_brace(self.text, head.end())]
        return _EntryParser(name, head[2] or "", body, self._variables).parse()

    def _module_variables(self) -> Iterator[Variable]:
        for line in re.findall(r"^[^\S\n]*(\.[^;{}()]*);", self._outside(), re.M):
            variable = _variable(line)
            if variable is not None:
                yield variable

    def _outside(self) -> str:
        """Return the text without the entries."""
        parts, start = [], 0
        for head in self._heads.values():
            parts.append(self.text[start : head.start()])
            start = _closing_brace(self.text, head.end()) + 1
        return "".join(parts) + self.text[start:]


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise SyntaxFault("The module ends within an entry.")


def _variable(text: str) -> Variable | None:
    match = _VARIABLE.match(text.strip())
    if match is None:
        return None
    space, align, type_, name, count = match.groups()
    size = DTYPES[type_].itemsize
    return Variable(name, space, int(align or size), size * int(count or 1), is_dynamic=count == "")


class _EntryParser:
    """Reads the body of an entry, statement by statement."""

    def __init__(
        self, name: str, params: str, body: str, module_variables: dict[str, Variable]
    ) -> None:
        self.name = name
        self.body = body
        self.params = tuple(
            variable for text in params.split(",") if (variable := _variable(text)) is not None
        )
        self.scopes = Scopes()
        self.variables = [v for v in module_variables.values() if v.name in body]
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}

    def parse(self) -> Entry:
        position, end = 0, len(self.body.rstrip())
        while position < end:
            match = _STATEMENT.match(self.body, position)
            if match is None:
                raise SyntaxFault(f"{self.name}: not understood: {self.body[position:][:80]!r}")
            self._take(*match.groups())
            position = match.end()
        return Entry(
            self.name,
            self.params,
            tuple(self.variables),
            tuple(self.scopes.types),
            tuple(self.instructions),
            self.labels,
        )

    def _take(self, brace: str | None, label: str | None, statement: str | None) -> None:
        if brace == "{":
            self.scopes.enter()
        elif brace == "}":
            self.scopes.leave()
        elif label is not None:
            self.labels[label] = len(self.instructions)
        elif statement is not None and statement.strip():
            self._statement(statement.strip())

    def _statement(self, text: str) -> None:
        if not text.startswith("."):
            self.instructions.append(self._instruction(text))
        elif (registers := _REGISTERS.match(text)) is not None:
            self.scopes.declare(registers[1], registers[2])
        elif (variable := _variable(text)) is not None:
            self.variables.append(variable)
        elif not text.startswith((".pragma", ".loc", ".file")):
            raise SyntaxFault(f"{self.name}: not understood: {text!r}")

    def _instruction(self, text: str) -> Instruction:
        match = _INSTRUCTION.match(text)
        if match is None:
            raise SyntaxFault(f"{self.name}: not understood: {text!r}")
        negated, guard, opcode, operands = match.groups()
        name, *modifiers = opcode.split(".")
        return Instruction(
            " ".join(text.split()),
            name,
            tuple(modifiers),
            tuple(parse_operand(operand, self.scopes) for operand in split_operands(operands)),
            self._guard(guard, bool(negated)) if guard else None,
        )

    def _guard(self, name: str, negated: bool) -> Register:
        register = self.scopes.find(name)
        if register is None:
            raise SyntaxFault(f"{self.name}: no register {name}.")
        return Register(register.index, register.type, negated)
