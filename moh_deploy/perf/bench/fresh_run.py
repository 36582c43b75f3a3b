"""The first run of a model in a process that does nothing else: loading, first run, memory."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import TypeAdapter

from moh_deploy.system.child_process import json_from

Load = Callable[[], Callable[[], object]]
"""Loads a model, and returns what runs it on its inputs."""


@dataclass(frozen=True)
class FreshTask(ABC):
    """What to run; each kind of model has a subclass, in a module that answers when it is run.

    Attributes:
        model: The file or directory.
        inputs: npz file of its inputs, in the model's order.
        threads: Threads within an operator; None lets the runtime choose.
        module: The module.
    """

    model: Path
    inputs: Path
    threads: int | None
    module: ClassVar[str]

    @abstractmethod
    def prepare(self) -> Load:
        """Do what is no part of loading the model: import the runtime, read the inputs."""


@dataclass(frozen=True)
class FreshRun:
    """What a process took that loads a model and runs it once; None for what is not known.

    Attributes:
        load_ms: Time on the wall from the file to a model that can run, imports left out.
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
    """
    found = json_from(
        ["-m", task.module],
        what=f"the process that loads {task.model} and runs it once",
        task=json.dumps(asdict(task), default=str),
    )
    return FreshRun(**found)


def answer(kind: type[FreshTask]) -> None:
    """Carry out the task on stdin, and answer on stdout."""
    task = TypeAdapter(kind).validate_python(json.load(sys.stdin))
    with redirect_stdout(sys.stderr):  # What a user's model prints is no answer.
        found = _carry_out(task.prepare())
    print(json.dumps(asdict(found)))


def _carry_out(load: Load) -> FreshRun:
    start = time.perf_counter()
    call = load()
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
    return next((int(one) * 1024 for one in kib), None)
