"""Compare the inner values of two graphs that name them alike, a bounded part at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.package import VectorSet
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.validate.bisection.forced_model import ForcedModel
from moh_deploy.validate.differences import abs_error, largest, largest_finite

_FIRST = 64
"""Values that are fetched in the first pair of runs; their size decides on the next ones."""

_MOST_BYTES = 256 << 20
"""What the values of one run may take, as far as the first ones tell."""

_MASK = 1e8
"""Beyond it a number is what a mask is made of: float16 has infinity for it, and means the same."""


@dataclass(frozen=True)
class InnerValue:
    """One value, over all vector sets.

    Attributes:
        name: Its name in both graphs.
        error: Largest absolute difference; infinite where one is not finite and the other is.
        size: Largest absolute finite value of the reference.
        shape: In the first vector set.
        finite: Wherever the reference is finite, the other is.
        is_float: It can be off by rounding.
    """

    name: str
    error: float
    size: float
    shape: tuple[int, ...]
    finite: bool
    is_float: bool = True


def compare_values(
    tested: ForcedModel,
    reference: ForcedModel,
    names: Sequence[str],
    vectors: Sequence[VectorSet],
) -> dict[str, InnerValue]:
    """Run both with these values as extra outputs.

    Args:
        tested: Runs with the gates fed to it, as does the reference.
        reference: What is believed.
        names: Values of both; what is no number is left out of the result.
        vectors: What to run.
    """
    found: dict[str, InnerValue] = {}
    # All values at once would not fit into memory: [B, H, S, S] scores of every layer, say.
    for chunk in _Chunks(names, found):
        # Each chunk needs new sessions, since a session's outputs are fixed when it is opened.
        runners = tested.open(chunk), reference.open(chunk)
        for one in vectors:
            got, expected = (
                runner.run(subject.inputs(one))
                for runner, subject in zip(runners, (tested, reference), strict=True)
            )
            for name in chunk:
                _note(found, name, got[name], expected[name])
    return found


@dataclass
class _Chunks(Iterable[Sequence[str]]):
    names: Sequence[str]
    found: Mapping[str, InnerValue]

    def __iter__(self) -> Iterator[Sequence[str]]:
        start, size = 0, _FIRST
        while start < len(self.names):
            yield self.names[start : start + size]
            start += size
            size = self._next()

    def _next(self) -> int:
        # Eight bytes each: values are compared in float64.
        sizes = [8 * math.prod(one.shape) for one in self.found.values()]
        mean = sum(sizes) / max(len(sizes), 1)
        # More names mean fewer sessions; 1024 bounds what a bad guess of sizes can cost.
        return max(_FIRST, min(1024, int(_MOST_BYTES / max(mean, 1.0))))


def _note(found: dict[str, InnerValue], name: str, got: Array, expected: Array) -> None:
    if not _is_number(got) or not _is_number(expected):
        return
    one = _compared(name, got, expected)
    known = found.get(name)
    if known is not None:
        one = replace(
            known,
            error=max(one.error, known.error),
            size=max(one.size, known.size),
            finite=one.finite and known.finite,
        )
    found[name] = one


def _compared(name: str, got: Array, expected: Array) -> InnerValue:
    is_float = _is_float(got) or _is_float(expected)
    # Booleans have no difference in numpy.
    got, expected = (one.astype(np.int8) if one.dtype == bool else one for one in (got, expected))
    size = largest_finite(expected)
    # The shape of the reference is kept; finite, since no number can be looked at.
    if got.shape != expected.shape:
        return InnerValue(name, math.inf, size, expected.shape, True, is_float)
    error = abs_error(got, expected)
    # float32 has -1e9 or the like where float16 has -inf: both switch a key off.
    masked = np.isinf(got) & (np.sign(got) == np.sign(expected)) & (np.abs(expected) > _MASK)
    # Both NaN: whatever it means, neither is further off.
    error = np.where(masked | (np.isnan(got) & np.isnan(expected)), 0.0, error)
    worst = largest(error)
    finite = bool((np.isfinite(got) | masked | ~np.isfinite(expected)).all())
    worst = math.inf if math.isnan(worst) else worst
    return InnerValue(name, worst, size, got.shape, finite, is_float)


def _is_number(array: Array) -> bool:
    return _is_float(array) or array.dtype.kind in "biu"


def _is_float(array: Array) -> bool:
    return array.dtype == BFLOAT16 or np.issubdtype(array.dtype, np.floating)
