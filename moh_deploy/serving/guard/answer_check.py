"""Judge the runs of a fallback level: NaN and infinities out of finite inputs, and slow runs.

Some models rightly take or return such values: a mask of -inf, scores of masked tokens. The kinds
of values that a package's recorded runs hold in a tensor are usual there, and are not judged.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from moh_deploy.package import VectorSet
from moh_deploy.serving.guard.policy import LatencySection
from moh_deploy.serving.guard.state_machine import Evidence, MoveReason
from moh_deploy.system.npz import Array, BoolArray

NonFinite = Literal["NaN", "inf", "-inf"]
_TESTS: Mapping[NonFinite, Callable[[Array], BoolArray]] = {
    "NaN": np.isnan,
    "inf": lambda array: np.isinf(array) & ~np.signbit(array),
    "-inf": lambda array: np.isinf(array) & np.signbit(array),
}


class WrongSamples(NamedTuple):
    """The wrong samples of an answer, with reason and name of the first wrong tensor."""

    reason: MoveReason
    value: str
    samples: tuple[int, ...]


class AnswerCheck:
    """Finds values in answers that are not finite; kinds of values in recorded runs are usual.

    With `has_samples`, the first axis of every input and output is that of the samples.
    """

    def __init__(
        self,
        outputs: Sequence[str],
        gates: Sequence[str],
        recorded: Sequence[VectorSet],
        has_samples: bool,
    ) -> None:
        self.outputs, self.gates, self.has_samples = tuple(outputs), tuple(gates), has_samples
        self._usual: defaultdict[str, set[NonFinite]] = defaultdict(set)
        for run in recorded:
            tensors = {**run.inputs, **run.outputs, **dict(zip(gates, run.gates, strict=False))}
            for name, array in tensors.items():
                self._usual[name] |= _kinds(array)

    def wrong(
        self, inputs: Mapping[str, Array], results: Mapping[str, Array]
    ) -> WrongSamples | None:
        """Return the samples with finite inputs and an answer that is not; None without any."""
        names = (*self.outputs, *(name for name in self.gates if name in results))
        # The way of nearly every answer.
        if all_finite([results[name] for name in names]):
            return None
        size = len(next(iter(inputs.values()))) if self.has_samples else 1
        judged = np.ones(size, bool)
        for name, array in inputs.items():
            judged &= ~self._unusual_samples(name, array, size)
        wrong: dict[str, BoolArray] = {}
        for name in names:
            # Gates of windows cannot be assigned to samples: they are judged if all samples are.
            if judged.all() or _is_by_sample(results[name], size):
                samples = self._unusual_samples(name, results[name], size) & judged
                if samples.any():
                    wrong[name] = samples
        if not wrong:
            return None
        first = next(iter(wrong))
        reason: MoveReason = "non-finite outputs" if first in self.outputs else "non-finite gates"
        numbers = np.flatnonzero(np.any(list(wrong.values()), axis=0))
        return WrongSamples(reason, first, tuple(map(int, numbers)))

    def _unusual_samples(self, name: str, array: Array, size: int) -> BoolArray:
        """Tell of each sample whether a tensor holds unusual kinds of values in it."""
        found = np.zeros(size, bool)
        for kind in _kinds(array) - self._usual.get(name, set()):
            unusual = _TESTS[kind](array)
            by_sample = _is_by_sample(array, size)
            found |= unusual.reshape(size, -1).any(axis=1) if by_sample else unusual.any()
        return found


def _is_by_sample(array: Array, size: int) -> bool:
    return array.ndim > 0 and len(array) == size


def all_finite(arrays: Sequence[Array]) -> bool:
    """Tell whether all arrays are free of NaN and infinities; integers always are."""
    # Sums are finite only if all of it is: one pass, and no array of booleans.
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(float(np.add.reduce(a, axis=None)) for a in arrays if a.dtype.char in "fd")
    others = arrays if not math.isfinite(total) else [a for a in arrays if a.dtype.char not in "fd"]
    return all(map(is_finite, others))


def is_finite(array: Array) -> bool:
    """Tell whether an array is free of NaN and infinities."""
    return not (array.size and is_float(array)) or bool(np.isfinite(array).all())


def is_float(array: Array) -> bool:
    """Tell whether an array holds floating-point numbers."""
    # To numpy bfloat16 is of kind V, a foreign dtype.
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _kinds(array: Array) -> set[NonFinite]:
    if is_finite(array):
        return set()
    return {kind for kind, test in _TESTS.items() if test(array).any()}


_MOST_RUNS = 10_000  # of a busy server the last runs are enough: they took about a second


class LatencyWindow:
    """The recent runs of a level, and the limit of their 99th percentile, if any."""

    def __init__(self, limit_ms: float | None, rule: LatencySection) -> None:
        self._limit_ms, self._rule = limit_ms, rule
        self._runs: deque[tuple[float, float]] = deque()  # end, milliseconds
        self._slow = 0

    def add(self, now: float, seconds: float) -> bool:
        """Add a run, and tell whether the runs in the window are too slow."""
        limit, runs = self._limit_ms, self._runs
        if limit is None:
            return False
        runs.append((now, 1e3 * seconds))
        self._slow += 1e3 * seconds > limit
        while runs[0][0] < now - self._rule.window_s or len(runs) > _MOST_RUNS:
            self._slow -= runs.popleft()[1] > limit
        # The percentile is above the limit if more than 1 of 100 runs are: nothing is sorted.
        return len(runs) >= self._rule.min_samples and self._slow > len(runs) // 100

    def figures(self) -> Evidence:
        """Return the 99th percentile of the runs in the window, its limit, and their number."""
        times = sorted(milliseconds for _, milliseconds in self._runs)
        p99_ms = times[math.ceil(0.99 * len(times)) - 1] if times else None
        return {"p99_ms": p99_ms, "limit_ms": self._limit_ms, "runs": len(times)}

    def clear(self) -> None:
        """Forget the times of all runs."""
        self._runs.clear()
        self._slow = 0
