"""Leaves tests to `make test-all`: those whose like a push runs anyway, or that build much.

A test with the marker `nightly` is deselected unless pytest is called with --nightly. Of a test
with the marker `sampled(count)` a push runs one in `count` of its parameters, spread over all of
them. The functions below choose by what the parameters are.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar
from zlib import crc32

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")
S = TypeVar("S")

nightly = pytest.mark.nightly
sampled = pytest.mark.sampled


def split_by_run(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the tests that a push runs, in their order, and those that it leaves to the night."""
    sampled = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("nightly"):
            sampled[item.nodeid.partition("[")[0]].append(item)
    push = {item for alike in sampled.values() for item in _sample(alike)}
    return [item for item in items if item in push], [item for item in items if item not in push]


def _sample(alike: list[pytest.Item]) -> list[pytest.Item]:
    """Return one in so many of a test's cases, as its marker `sampled` says: at least one.

    By a digest of their names, not by place: every second one of pairs might be of one kind. Who
    adds a case moves one other at most.
    """
    mark = alike[0].get_closest_marker("sampled")
    if mark is None:
        return alike
    (count,) = mark.args
    by_digest = sorted(alike, key=lambda item: crc32(item.name.encode()))
    return by_digest[: math.ceil(len(alike) / count)]


def nightly_if(condition: bool) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marks of a parameter that a push leaves out on this condition."""
    return (nightly,) if condition else ()


def first_of_each(values: Iterable[T], kind: Callable[[T], Hashable]) -> list[ParameterSet]:
    """Return every value as a parameter; a push runs the first of each kind.

    Args:
        kind: Says which values are alike. A value of the kind None is not run by a push.
    """
    seen: set[Hashable] = {None}
    parameters = []
    for value in values:
        parameters.append(pytest.param(value, marks=nightly_if(kind(value) in seen)))
        seen.add(kind(value))
    return parameters


def one_in(count: int, values: Iterable[T]) -> list[ParameterSet]:
    """Return every value as a parameter; a push runs the first of each `count`."""
    return [
        pytest.param(value, marks=nightly_if(number % count != 0))
        for number, value in enumerate(values)
    ]


def in_turn(names: Iterable[T], others: Sequence[S]) -> list[ParameterSet]:
    """Return every pair as parameters; a push runs each name with one of the others, by turns."""
    return [
        pytest.param(name, other, marks=nightly_if(place != number % len(others)))
        for number, name in enumerate(names)
        for place, other in enumerate(others)
    ]
