"""Times candidates against each other: graphs of many calls, in turns, on rotating tensors."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from tests.gpu.device import Call, Device
from tests.gpu.kernels import Refused
from tests.gpu.steps import Facts
from tests.gpu.stored_cases import Tolerance
from tests.gpu.workloads import Effort

_MOST_CALLS = 512
_LEAST_REPEATS = 3
_MOST_SECONDS = 0.8
# Others round where they like, and break ties of heads as they like. What computes something else
# is wrong nearly everywhere.
_OTHERS_TOLERANCE = 10
_OTHERS_SHARE = 0.95


class OutputCall(Protocol):
    """Enqueues a computation; the result is where it always is."""

    @property
    def output(self) -> torch.Tensor: ...

    def __call__(self) -> object: ...


class TorchCall:
    """A function of torch. What it returns is kept, as the outputs of our kernels are: memory that
    was used again would be in the cache."""

    output: torch.Tensor

    def __init__(
        self, function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> None:
        self._function, self._inputs = function, inputs

    def __call__(self) -> None:
        self.output = self._function(*self._inputs)


@dataclass(frozen=True)
class Entrant:
    """A candidate's calls, one for each set of tensors.

    Attributes:
        gated: Its output is multiplied by the gates.
        context: What its calls are made in.
    """

    calls: Sequence[OutputCall]
    gated: bool
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    note: str = ""


@dataclass(frozen=True)
class Expected:
    """What the first set's output should be; a closed gate's 0 exactly."""

    plain: torch.Tensor
    gated: torch.Tensor
    tolerance: Tolerance

    def judge(self, got: torch.Tensor, *, gated: bool, ours: bool) -> Facts:
        """Return the largest error, and whether a result is right: ours everywhere."""
        exact, result = self.gated if gated else self.plain, got.double()
        error = (result - exact).abs()
        allowed = self.tolerance.absolute + self.tolerance.relative * exact.abs()
        if ours:
            right = bool(torch.where(exact == 0, result == 0, error <= allowed).all())
        else:
            right = float((error <= _OTHERS_TOLERANCE * allowed).double().mean()) >= _OTHERS_SHARE
        return {"max_error": float(error.max()), "right": right}


def race(
    device: Device,
    entries: Mapping[str, Callable[[], Entrant]],
    ours: Collection[str],
    expected: Expected,
    effort: Effort,
) -> dict[str, Facts]:
    """Judge and time candidates.

    Args:
        entries: Make each candidate's calls. What is not `ours` may refuse by any exception, and a
            kernel of ours that the library does not have for these tensors or this GPU.

    Returns:
        For each: `us` a call (`low_us`, `high_us`: quartiles), `enqueue_us` of CPU time a call,
        `max_error`, whether it is `right`; or why it was `refused`.
    """
    device.release()
    rows: dict[str, Facts] = {}
    replays: dict[str, tuple[Call, int]] = {}
    for name, enter in entries.items():
        rows[name], replay = _entered(device, enter, expected, effort, ours=name in ours)
        if replay is not None:
            replays[name] = replay
    for name, samples in _interleaved(device, replays, effort).items():
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        rows[name] |= {"us": middle, "low_us": low, "high_us": high}
    return rows


def _entered(
    device: Device,
    enter: Callable[[], Entrant],
    expected: Expected,
    effort: Effort,
    *,
    ours: bool,
) -> tuple[Facts, tuple[Call, int] | None]:
    """Capture a candidate's calls and judge what they compute.

    Returns:
        What is known of it, and the graph with the number of its calls; None: it refuses.
    """
    try:
        entrant = enter()
        calls = _repeated(entrant.calls, effort.calls)
        with entrant.context():
            device.warm_up(calls)
            enqueue_us = _enqueue_us(device, calls[: effort.calls])
            replay = device.capture(calls)
        entrant.calls[0].output.fill_(math.nan)
        replay()
        device.synchronize()
    except Exception as error:
        if ours and not isinstance(error, Refused):
            raise
        device.synchronize()
        return {"refused": _first_cause(error)[:300]}, None
    row = expected.judge(entrant.calls[0].output, gated=entrant.gated, ours=ours)
    row |= {"gated": entrant.gated, "enqueue_us": enqueue_us}
    return row | ({"note": entrant.note} if entrant.note else {}), (replay, len(calls))


def _first_cause(error: BaseException) -> str:
    """Return what went wrong first: ending a capture that has failed raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _repeated(calls: Sequence[OutputCall], least: int) -> list[OutputCall]:
    """Return calls in turns: enough of them, and few enough to be held."""
    rounds = math.ceil(least / len(calls))
    return (list(calls) * rounds)[:_MOST_CALLS]


def _enqueue_us(device: Device, calls: Sequence[Call]) -> float:
    """CPU time of a call that only enqueues, where nothing is in the way."""
    device.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    seconds = time.perf_counter() - start
    device.synchronize()
    return seconds / len(calls) * 1e6


def _interleaved(
    device: Device, replays: Mapping[str, tuple[Call, int]], effort: Effort
) -> dict[str, list[float]]:
    """Return microseconds a call, several times each: candidates take turns."""
    first = sum(device.elapsed_us(replay) for replay, _ in replays.values())
    affordable = int(_MOST_SECONDS * 1e6 / (2 * first + 1))
    repeats = min(effort.repeats, max(_LEAST_REPEATS, affordable))
    samples: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(max(2, repeats)):
        for name, (replay, calls) in replays.items():
            samples[name].append(device.elapsed_us(replay) / calls)
    return samples
