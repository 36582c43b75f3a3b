"""Probe a package in a process of its own: edge cases are where kernels end the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.errors import BackendError, MoHDeployError, ValidationError
from moh_deploy.package import Runtime
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.system.isolate import Outcome, isolated
from moh_deploy.system.progress import Progress
from moh_deploy.validate.edge_cases.report import ProbeReport


@dataclass(frozen=True)
class ProbeTask:
    """The arguments of `moh_deploy.probe`, to be sent to another process.

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
    runtime: Runtime | None = None
    kernels: Kernels = "auto"
    policy: Path | None = None
    checkpoint: Path | None = None
    loading: dict[str, object] = field(default_factory=dict)
    quiet: bool = True


def isolated_probe(task: ProbeTask) -> ProbeReport:
    """Carry out a task in another process.

    Raises:
        ValidationError: A case ended the process; the sentence names it.
        MoHDeployError: As `probe` does.
    """
    found = isolated(_probed, task, show_steps=not task.quiet)
    if found.answer is None and found.error is None:
        raise _killed(task, found)
    return found.required("the process that probes")


def _probed(task: ProbeTask, *, progress: Progress) -> ProbeReport:
    from moh_deploy.api.probe import probe
    from moh_deploy.cli.original import original_of

    return probe(
        task.package_dir,
        inputs=task.inputs,
        update_corpus=task.update_corpus,
        valid_tokens=task.valid_tokens,
        longest=task.longest,
        runtime=task.runtime,
        kernels=task.kernels,
        policy=task.policy,
        original=original_of(task.checkpoint, task.loading, progress),
        progress=progress,
    )


def _killed(task: ProbeTask, found: Outcome[ProbeReport]) -> MoHDeployError:
    sentence = (
        f"the process that probes {task.package_dir} ended with {found.how()} in case"
        f" '{found.step or 'starting'}'."
    )
    # A signal is what a kernel that reads beyond its arrays ends with: that is a probe's answer.
    # A status is a bug of ours, or Python's own end.
    if found.return_code is not None and found.return_code >= 0:
        return BackendError(sentence, hint="What it said of it is above.")
    return ValidationError(
        sentence,
        hint="Where it does not with --kernels off, a kernel is what ends it. SIGKILL mostly comes"
        " from a system short of memory: --longest DIM=N chooses a smaller case.",
    )
