"""Interleaved timing: candidates take turns on the same inputs, and their outputs are checked."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from op_candidates import Bench, Candidate

_SETTLE_SECONDS = 0.005

# Largest |output - float64|. Inputs are of order 1, so that outputs are of order 1 to 5.
BOUNDS = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}


class WrongOutput(Exception):
    """A candidate computed something else than what is measured."""


@dataclass(frozen=True)
class Timing:
    """Times of one candidate.

    Attributes:
        runs_ms: Of each round, for one call.
        max_abs_error: Against float64, over all input sets.
    """

    runs_ms: tuple[float, ...]
    max_abs_error: float

    @property
    def median_ms(self) -> float:
        return median(self.runs_ms)

    @property
    def min_ms(self) -> float:
        return min(self.runs_ms)


def measure(bench: Bench, candidates: Sequence[Candidate], rounds: int) -> list[Timing]:
    """Time the candidates in turn, in an order drawn each round.

    A turn begins with a run that is not timed: caches hold what the last candidate had. One thread
    is measured by its CPU time, several by the clock on the wall. Each set of inputs is run once
    before, and checked; so is the last round. A decoding step counts all sets, as the layers of a
    model: no cache then stays close to the core.

    Raises:
        WrongOutput: An output differs from the float64 result.
    """
    errors = [_error_over_sets(bench, candidate) for candidate in candidates]
    runs_ms: list[list[float]] = [[] for _ in candidates]
    clock = time.thread_time if bench.threads == 1 else time.perf_counter
    order = random.Random(0)
    for number in range(rounds):
        sets = _sets_of_round(bench, number)
        for index in order.sample(range(len(candidates)), len(candidates)):
            candidate = candidates[index]
            runs_ms[index].append(_time(candidate, sets, clock))
            if number == rounds - 1:
                errors[index] = max(errors[index], max_abs_error(bench, candidate, sets[-1]))
    return [Timing(tuple(ms), error) for ms, error in zip(runs_ms, errors, strict=True)]


def max_abs_error(bench: Bench, candidate: Candidate, index: int) -> float:
    """Return how far the output of the set that was run last is from float64.

    Raises:
        WrongOutput: Beyond the bound of the dtype, or not exactly 0 where a gate is.
    """
    expected = bench.sets[index].expected(bench.shape, candidate.active)
    output = candidate.output.astype(np.float64)
    error = float(np.abs(output - expected).max())
    kernel = candidate.kernel
    bound = BOUNDS[bench.dtype if kernel is None else _coarser(bench.dtype, kernel.compute_type)]
    where = f"{candidate.name}, {bench.shape.name}, active {candidate.active:g}"
    check_error(where, error, bound)
    if kernel is not None and np.any(output[expected == 0]):
        raise WrongOutput(f"{where}: an unselected row is not exactly 0.")
    return error


def check_error(who: str, error: float, bound: float) -> float:
    """Return an error within its bound.

    Raises:
        WrongOutput: It is beyond that, or no number.
    """
    if not error <= bound:
        raise WrongOutput(f"{who}: off by {error:.3g}, expected at most {bound:g}.")
    return error


def _coarser(first: str, second: str) -> str:
    return max(first, second, key=lambda dtype: BOUNDS[dtype])


def _error_over_sets(bench: Bench, candidate: Candidate) -> float:
    errors = []
    for index in range(len(bench.sets)):
        _poison(candidate)
        candidate.run(index)
        errors.append(max_abs_error(bench, candidate, index))
    return max(errors)


def _time(candidate: Candidate, sets: Sequence[int], clock: Callable[[], float]) -> float:
    if clock is time.perf_counter:
        time.sleep(_SETTLE_SECONDS)  # Threads of the last candidate may still look for work.
    candidate.run(sets[-1])
    _poison(candidate)
    start = clock()
    for index in sets:
        candidate.run(index)
    return (clock() - start) / len(sets) * 1e3


def _poison(candidate: Candidate) -> None:
    candidate.output.fill(np.nan)


def _sets_of_round(bench: Bench, number: int) -> list[int]:
    count = len(bench.sets)
    return list(range(count)) if bench.shape.is_decode else [number % count]
