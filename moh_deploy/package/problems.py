"""Say what is wrong with single values of a manifest, each with the key path that has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

Problem = tuple[str, str]
"""A key path, and what is wrong there."""

MOST_SIZE = 2**63 - 1
"""Sizes are int64 in ONNX."""


def number_problems(key: str, value: int | None, least: int, most: int) -> Iterator[Problem]:
    if value is not None and not least <= value <= most:
        # A number of thousands of digits is not printed.
        shown = value if abs(value) <= MOST_SIZE else f"about 2^{abs(value).bit_length()}"
        yield key, f"is {shown}, expected {least} to {most}"


def share_problems(key: str, value: float | None) -> Iterator[Problem]:
    if value is not None and not 0 <= value <= 1:
        yield key, f"is {value}, expected 0 to 1"


def amount_problems(key: str, value: float) -> Iterator[Problem]:
    if not 0 <= value < math.inf:
        yield key, f"is {value}, expected a finite number, 0 or more"


def word_problems(key: str, value: str, known: Sequence[str]) -> Iterator[Problem]:
    if value not in known:
        yield key, f"is '{value[:100]}', expected one of {', '.join(known)}"


def repeated_problems(key: str, field: str, names: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield f"{key}[{index}].{field}", f"is '{name}', as that of {key}[{first[name]}]"
        if not name:
            yield f"{key}[{index}].{field}", "is empty"


def sizes_problems(key: str, sizes: Sequence[Mapping[str, int]]) -> Iterator[Problem]:
    for index, named in enumerate(sizes):
        for name, size in named.items():
            yield from number_problems(f"{key}[{index}].{name}", size, 0, MOST_SIZE)


def length_problems(key: str, found: Sequence[object], expected: int, of: str) -> Iterator[Problem]:
    # Empty lists stand for what was not measured.
    if found and len(found) != expected:
        yield key, f"has {len(found)} entries for {expected} {of}"


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
