"""Measure how long single runs of a model take, on the wall and in CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.perf.timing import Calls, TimeSamples, Turns, settle_seconds
from moh_deploy.runtime.base import Model, Variant
from moh_deploy.system.isolate import isolated
from moh_deploy.system.npz import read_npz
from moh_deploy.validate.reference.user_vectors import match_inputs

# A percentile of fewer runs would be the slowest of them, whatever that was.
LEAST_RUNS = {50: 1, 90: 10, 99: 100}
# Bounds memory where a run takes a microsecond and --min-time is long.
_MOST_RUNS = 1_000_000
# Odd, so that the median is one of those kept; enough to draw a distribution from.
_MOST_KEPT = 201
_REFILL_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each run of one candidate."""

    wall_ms: TimeSamples  # on the wall
    cpu_ms: TimeSamples  # of all threads together
    # On the wall, from before CPU time is read to after it is read again: where the machine is
    # busy, this thread may wait in between while others go on.
    around_ms: TimeSamples


MeasureRuns = Callable[[Calls], dict[str, Timing]]
"""Times every run of candidates that take turns."""


def runs_timer(min_seconds: float, warmup_seconds: float, *, threads: int | None) -> MeasureRuns:
    """Return a function that times candidates by both clocks, run by run.

    Args:
        min_seconds: All candidates together run for at least so long.
        warmup_seconds: And for so long before, untimed.
        threads: Of each candidate; several of them spin for a while when they are out of work.
    """
    turns = Turns(
        # In the order of the fields of `Timing`; the first is read closest to the run. CPU time is
        # read between two readings of the wall, so that its share of `around_ms` cannot exceed all
        # cores.
        clocks=(time.perf_counter, time.process_time, time.perf_counter),
        min_seconds=min_seconds,
        warmup_seconds=warmup_seconds,
        # Every run is a sample: averages of several would hide the slow ones from p99.
        least_sample_seconds=0.0,
        most_rounds=_MOST_RUNS,
        settle_seconds=settle_seconds(threads),
        refill_seconds=_REFILL_SECONDS,
    )

    def measure(candidates: Calls) -> dict[str, Timing]:
        return {name: Timing(*samples) for name, samples in turns(candidates).items()}

    return measure


@dataclass(frozen=True)
class Latency:
    """Percentiles, mean and CPU time of the runs of one candidate."""

    runs: int  # how many were timed
    p50_ms: float  # half of the runs took no longer
    p90_ms: float | None  # nine in ten took no longer; None of fewer than 10 runs
    p99_ms: float | None  # 99 in a hundred took no longer; None of fewer than 100 runs
    mean_ms: float  # mean time
    cpu_ms: float  # mean CPU time of a run, all threads together
    # CPU time over time on the wall: 2.0 is two cores that are busy all the time.
    utilisation: float
    # Time of each run, the fastest first; of more than 201 runs, so many of them, evenly spread
    # from the fastest to the slowest.
    sorted_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, timing: Timing) -> Latency:
        """Return the figures of some runs."""
        samples = timing.wall_ms
        # The smallest sample that so many are not above: no interpolation, a run took this long.
        p50, p90, p99 = (
            float(np.percentile(samples, percent, method="inverted_cdf"))
            if len(samples) >= least
            else None
            for percent, least in LEAST_RUNS.items()
        )
        assert p50 is not None
        # In order; of many, so few that a report can hold them, the fastest and the slowest among
        # them.
        ranks = np.linspace(0, len(samples) - 1, min(len(samples), _MOST_KEPT)).round().astype(int)
        kept = tuple(np.sort(samples)[ranks].tolist())
        mean, cpu, around = map(fmean, (timing.wall_ms, timing.cpu_ms, timing.around_ms))
        utilisation = cpu / around if around else 0.0
        return cls(len(samples), p50, p90, p99, mean, cpu, utilisation, kept)


# The first run of a model in a process that does nothing else: loading, first run, memory.


@dataclass(frozen=True)
class FreshTask:
    """A model to load and run once in a process of its own."""

    model: Model  # what is loaded; it can be pickled
    variant: Variant  # the way in which it is opened
    inputs: Path  # npz file of its inputs, by name or in the model's order


@dataclass(frozen=True)
class FreshRun:
    """The time and memory that a process took to load a model and run it once."""

    # Time on the wall from the file to a model that can run, imports left out; here and below None
    # is for what is not known.
    load_ms: float | None = None
    first_run_ms: float | None = None  # of the first run
    # The most memory that the process ever had, Python and the runtime included; None where the
    # system does not tell.
    peak_memory_bytes: int | None = None


MeasureFresh = Callable[[FreshTask], FreshRun]


def fresh_run(task: FreshTask) -> FreshRun:
    """Run a task in a process of its own.

    Raises:
        BackendError: The process died.
        MoHDeployError: The model cannot be loaded or run there.
    """
    what = f"the process that loads {task.model.name} and runs it once"
    return isolated(_first_run, task).required(what)


def _first_run(task: FreshTask) -> FreshRun:
    # Imports are paid once by a server, whatever it loads, and reading inputs is no part of a
    # model: both come before the clock starts.
    task.model.import_runtime(task.variant.runtime)
    arrays = read_npz(task.inputs, error=BackendError)
    # Loading is from here to a call that can be timed: imports and reading the inputs are before.
    start = time.perf_counter()
    with task.model.open(task.variant) as runner:
        theirs = [spec.name for spec in runner.inputs]
        names = match_inputs(theirs, list(arrays), task.model.name)
        call = runner.bound({name: arrays[ours] for name, ours in names.items()})
        # Binding inputs belongs to loading; the first run may still compile, allocate and pack
        # weights.
        loaded = time.perf_counter()
        call()
        ran = time.perf_counter()
    return FreshRun((loaded - start) * 1e3, (ran - loaded) * 1e3, _peak_memory_bytes())


def _peak_memory_bytes() -> int | None:
    """Ask Linux for this program's own peak: that of `getrusage` counts the parent's, too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kib = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(name) * 1024 for name in kib), None)
