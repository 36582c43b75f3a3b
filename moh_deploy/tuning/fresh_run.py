"""The first run of a model in a process that does nothing else: loading, first run, memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from moh_deploy.backends.onnxruntime import open_session, runtime_name
from moh_deploy.backends.runner import Kernels
from moh_deploy.child_process import child_environment, how_it_ended
from moh_deploy.errors import BackendError
from moh_deploy.npz import read_npz
from moh_deploy.package import ComputeType

_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class FreshTask:
    """What to run.

    Attributes:
        model: ONNX model.
        inputs: npz file of its inputs.
        kernels: What runs MoH nodes, see `open_session`.
        compute_type: What kernels may round the operands of attention's products to.
        threads: Threads within an operator; None lets ONNX Runtime choose.
    """

    model: Path
    inputs: Path
    kernels: Kernels
    compute_type: ComputeType
    threads: int | None


@dataclass(frozen=True)
class FreshRun:
    """What a process took that loads a model and runs it once.

    Attributes:
        load_ms: Time on the wall from the file to a session that can run, imports left out.
        first_run_ms: Of the first run.
        peak_memory_bytes: The most memory that the process ever had, Python and ONNX Runtime
            included; None where the system does not tell.
    """

    load_ms: float
    first_run_ms: float
    peak_memory_bytes: int | None


MeasureFresh = Callable[[FreshTask], FreshRun]


def fresh_run(task: FreshTask) -> FreshRun:
    """Run a task in a process of its own.

    Raises:
        BackendError: The process died.
    """
    command = [sys.executable, "-m", "moh_deploy.tuning.fresh_run"]
    done = subprocess.run(
        command,
        input=json.dumps(asdict(task), default=str),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=child_environment(),
    )
    if done.returncode != 0:
        raise BackendError(
            f"the process that loads {task.model} and runs it once ended with"
            f" {how_it_ended(done.returncode)}: {done.stderr.strip()[-_MOST_CHARACTERS:]}"
        )
    return FreshRun(**json.loads(done.stdout))


def main() -> None:
    """Carry out the task on stdin, and answer on stdout."""
    content = cast("dict[str, str]", json.load(sys.stdin))
    task = FreshTask(
        **{**content, "model": Path(content["model"]), "inputs": Path(content["inputs"])}  # type: ignore[arg-type]
    )
    print(json.dumps(asdict(_carry_out(task))))


def _carry_out(task: FreshTask) -> FreshRun:
    runtime_name()  # Importing the runtime is no part of loading a model.
    feeds = read_npz(task.inputs, error=BackendError)
    start = time.perf_counter()
    session = open_session(
        task.model, kernels=task.kernels, compute_type=task.compute_type, threads=task.threads
    )
    loaded = time.perf_counter()
    session.bound(feeds)()
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


if __name__ == "__main__":
    main()
