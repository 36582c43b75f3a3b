"""The first run of a model in a process that does nothing else: loading, first run, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import BackendError
from moh_deploy.runtime.base import Model, Variant
from moh_deploy.system.isolate import isolated
from moh_deploy.system.npz import read_npz
from moh_deploy.validate.reference.matching import match_inputs


@dataclass(frozen=True)
class FreshTask:
    """A model to load and run once in a process of its own.

    Attributes:
        model: What is loaded; it can be pickled.
        variant: The way in which it is opened.
        inputs: npz file of its inputs, by name or in the model's order.
    """

    model: Model
    variant: Variant
    inputs: Path


@dataclass(frozen=True)
class FreshRun:
    """The time and memory that a process took to load a model and run it once.

    Attributes:
        load_ms: Time on the wall from the file to a model that can run, imports left out; here
            and below None is for what is not known.
        first_run_ms: Of the first run.
        peak_memory_bytes: The most memory that the process ever had, Python and the runtime
            included; None where the system does not tell.
    """

    load_ms: float | None = None
    first_run_ms: float | None = None
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
