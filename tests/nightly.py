"""Leaves tests to `make test-all`: those whose like a push runs anyway, or that build much.

A test with the marker `nightly` is deselected unless pytest is called with --nightly. These mark
some of the parameters of a test, so that a push keeps representatives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")
S = TypeVar("S")

nightly = pytest.mark.nightly


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
