"""Probe a package in a process of its own: edge cases are where kernels end the process."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.errors import BackendError, MoHDeployError, ValidationError
from moh_deploy.runtime.runner import Kernels
from moh_deploy.system.child_process import child_environment, how_it_ended
from moh_deploy.system.progress import SilentProgress, progress_for_terminal
from moh_deploy.system.staging import is_disk_full, scratch_directory
from moh_deploy.system.termination import cleaned_up_on_termination
from moh_deploy.validate.edge_cases.report import ProbeReport

PROCESS = "moh_deploy.cli.probe_process"

_DISK_FULL = 74
"""What the other process ends with where it cannot even say so; of `os.EX_IOERR`, where that is."""

_TASK, _ANSWER, _STEPS = "task.pickle", "answer.pickle", "steps.txt"


@dataclass(frozen=True)
class ProbeTask:
    """What `probe` is asked for; see there.

    Attributes:
        checkpoint: The original model, that records what is found.
        loading: How it is loaded, see `original_of`.
        quiet: Show no progress.
    """

    package_dir: Path
    inputs: tuple[Path, ...] = ()
    update_corpus: bool = False
    valid_tokens: str | None = None
    longest: Mapping[str, int] = field(default_factory=dict)
    kernels: Kernels = "auto"
    policy: Path | None = None
    checkpoint: Path | None = None
    loading: dict[str, object] = field(default_factory=dict)
    quiet: bool = True


def probe_apart(task: ProbeTask, *, module: str = PROCESS) -> ProbeReport:
    """Carry out a task in another process.

    Args:
        task: What to do.
        module: What Python runs there.

    Raises:
        ValidationError: A case ended the process; the sentence names it.
        MoHDeployError: As `probe` does.
    """
    with scratch_directory("moh-deploy-probe") as folder:
        (folder / _TASK).write_bytes(pickle.dumps(task))
        return_code = _run(module, folder)
        if return_code == _DISK_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # `scratch_directory` says where
        if not (folder / _ANSWER).is_file():
            raise _killed(task, return_code, folder / _STEPS)
        # Written by our own process, into a folder that nobody else may write to.
        answer = pickle.loads((folder / _ANSWER).read_bytes())
    if isinstance(answer, MoHDeployError):
        raise answer
    assert isinstance(answer, ProbeReport)
    return answer


def carry_out(folder: Path) -> None:
    """Do the task in a folder, and leave the answer there; on a full disk, end with a status."""
    try:
        _carry_out(folder)
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(_DISK_FULL)


def _carry_out(folder: Path) -> None:
    from moh_deploy.api.probe import probe
    from moh_deploy.cli.original import original_of

    task = pickle.loads((folder / _TASK).read_bytes())
    assert isinstance(task, ProbeTask)
    progress = _NotedProgress(folder / _STEPS, quiet=task.quiet)
    answer: ProbeReport | MoHDeployError
    try:
        with redirect_stdout(sys.stderr):  # What code of the user's prints is no report.
            answer = probe(
                task.package_dir,
                inputs=task.inputs,
                update_corpus=task.update_corpus,
                valid_tokens=task.valid_tokens,
                longest=task.longest,
                kernels=task.kernels,
                policy=task.policy,
                original=original_of(task.checkpoint, task.loading, progress),
                progress=progress,
            )
    except MoHDeployError as error:
        answer = error
    (folder / _ANSWER).write_bytes(pickle.dumps(answer))


class _NotedProgress(SilentProgress):
    """Write down each step before it begins, and show it where progress is shown."""

    def __init__(self, path: Path, *, quiet: bool) -> None:
        super().__init__()
        self._path = path
        self._shown_by = progress_for_terminal(quiet=quiet)

    def _shown(self, name: str) -> AbstractContextManager[object]:
        self._path.write_text(name, encoding="utf-8")
        return self._shown_by.step(name)


def _run(module: str, folder: Path) -> int:
    command = [sys.executable, "-m", module, str(folder)]
    # What it has in temporary files when it is ended goes with the folder.
    environment = {**child_environment(), "TMPDIR": str(folder)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)

    # Not waited for when this is ended: that may have stopped a wait, which holds a lock.
    with process, cleaned_up_on_termination(process.terminate):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # Else the case would run to its end. What it writes it removes.
            raise


def _killed(task: ProbeTask, return_code: int, steps: Path) -> MoHDeployError:
    step = steps.read_text(encoding="utf-8") if steps.is_file() else "starting"
    how = how_it_ended(return_code)
    sentence = f"the process that probes {task.package_dir} ended with {how} in case '{step}'."
    if return_code >= 0:
        return BackendError(sentence, hint="What it said of it is above.")
    return ValidationError(
        sentence,
        hint="Where it does not with --kernels off, a kernel is what ends it. SIGKILL mostly comes"
        " from a system short of memory: --longest DIM=N chooses a smaller case.",
    )
