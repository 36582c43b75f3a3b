"""Write and read the text format of protocol buffers, as Triton's `config.pbtxt` has it.

Only what such a file needs: no extensions, no `Any`. Every field is kept as a list, since the text
does not say which may be repeated.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from moh_deploy.errors import MoHDeployError

MOST_DEPTH = 20


@dataclass(frozen=True)
class Word:
    """The name of an enum's value: `TYPE_FP32`."""

    text: str


TextValue: TypeAlias = Union[str, int, float, bool, Word, "TextMessage"]
TextMessage: TypeAlias = Mapping[str, Sequence["TextValue"]]


def to_text(message: TextMessage, indent: str = "") -> str:
    """Encode a message: scalars of a field in one line, messages nested."""
    lines = []
    for name, values in message.items():
        scalars = [one for one in values if not isinstance(one, Mapping)]
        if len(values) > 1 and len(scalars) == len(values):
            lines.append(f"{indent}{name}: [ {', '.join(map(_scalar_text, scalars))} ]\n")
            continue
        for value in values:
            if isinstance(value, Mapping):
                inner = to_text(value, f"{indent}  ")
                lines.append(f"{indent}{name} {{\n{inner}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar_text(value)}\n")
    return "".join(lines)


def _scalar_text(value: TextValue) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(one, one) for one in value) + '"'
    return str(value)


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def from_text(text: str, source: str, *, error: type[MoHDeployError]) -> dict[str, list[TextValue]]:
    """Parse a message.

    Args:
        source: Where it comes from; it opens the error message.
        error: What to raise if it is no such text; the message has the line.
    """
    return _Parser(text, source, error).message(closing=None, depth=0)


_TOKEN = re.compile(
    r"""(?P<blank>(?:\s|\#[^\n]*)+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)f?(?![\w.]))
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>[{}\[\]<>:,;])""",
    re.VERBOSE,
)
_LONGEST_NUMBER = 40


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


class _Parser:
    """Reads tokens from left to right; `_ahead` is the next one, of kind `end` after the last."""

    def __init__(self, text: str, source: str, error: type[MoHDeployError]) -> None:
        self._source, self._error = source, error
        self._tokens = self._split(text)
        self._ahead = next(self._tokens)

    def message(self, closing: str | None, depth: int) -> dict[str, list[TextValue]]:
        if depth > MOST_DEPTH:
            raise self._problem(f"it is nested deeper than {MOST_DEPTH} levels")
        found: dict[str, list[TextValue]] = {}
        while not self._at_end_of(closing):
            name = self._take("word", "the name of a field").text
            has_colon = self._skip(":")
            values = found.setdefault(name, [])
            if self._skip("["):
                while not self._skip("]"):
                    values.append(self._value(depth, has_colon))
                    if self._ahead.text != "]" and not self._skip(","):
                        raise self._expected("',' or ']'")
            else:
                values.append(self._value(depth, has_colon))
            if not self._skip(","):
                self._skip(";")
        return found

    def _at_end_of(self, closing: str | None) -> bool:
        if closing is None:
            return self._ahead.kind == "end"
        return self._skip(closing)

    def _value(self, depth: int, has_colon: bool) -> TextValue:
        for opening, closing in (("{", "}"), ("<", ">")):
            if self._skip(opening):
                return self.message(closing, depth + 1)
        if not has_colon:
            raise self._expected("':' or '{'")
        if self._ahead.kind == "word":
            word = self._next().text
            return word == "true" if word in ("true", "false") else Word(word)
        if self._ahead.kind == "number":
            return self._number(self._next())
        # Texts that follow each other are one.
        text = _unquoted(self._take("text", "a value").text)
        while self._ahead.kind == "text":
            text += _unquoted(self._next().text)
        return text

    def _number(self, token: _Token) -> int | float:
        if len(token.text) > _LONGEST_NUMBER:
            raise self._problem(f"a number has more than {_LONGEST_NUMBER} digits")
        is_whole = token.text.lstrip("+-").isdecimal() or "x" in token.text.lower()
        try:
            return int(token.text, 0) if is_whole else float(token.text.removesuffix("f"))
        except ValueError:
            raise self._problem(f"'{token.text}' is no number") from None

    def _take(self, kind: str, what: str) -> _Token:
        if self._ahead.kind != kind:
            raise self._expected(what)
        return self._next()

    def _skip(self, sign: str) -> bool:
        if self._ahead.kind != "sign" or self._ahead.text != sign:
            return False
        self._next()
        return True

    def _next(self) -> _Token:
        token, self._ahead = self._ahead, next(self._tokens)
        return token

    def _split(self, text: str) -> Iterator[_Token]:
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(
                    f"{self._source}: line {line}: {text[at : at + 20]!r} cannot be read."
                )
            if match.lastgroup != "blank":
                yield _Token(str(match.lastgroup), match[0], line)
            line += match[0].count("\n")
            at = match.end()
        while True:
            yield _Token("end", "the end", line)

    def _expected(self, what: str) -> MoHDeployError:
        return self._problem(f"'{self._ahead.text[:60]}' stands there, expected {what}")

    def _problem(self, words: str) -> MoHDeployError:
        return self._error(f"{self._source}: line {self._ahead.line}: {words}.")


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _UNESCAPED.get(match[1], match[1]), text[1:-1])
