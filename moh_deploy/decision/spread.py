"""Run blocks of samples on a Ray cluster: more machines for quality, never for time.

Ray places, repeats and collects; nothing here schedules. What is lost with a worker is run again.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import moh_deploy
from moh_deploy.decision.arm import Arm, OpenedArm, named_errors, open_arms
from moh_deploy.decision.score_arms import ArmBlock, BlockScores, ran_by, run_scores, score_here
from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.package import Manifest
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.metrics import Metric

# A block that kills its worker each time is at fault itself.
_RETRIES = 3


@dataclass(frozen=True)
class _Task:
    """A block as it is sent: what a worker opens in place of what is open here.

    Attributes:
        metrics: Pickled: a worker has to know `path` before it can find functions of the user.
        ran_by: What runs the arm here.
        version: Of this package, here.
        folder: Where relative paths begin.
        path: Where Python finds modules here.
    """

    arm: Arm
    base: Manifest
    runs: Sequence[LabelledRun]
    metrics: bytes
    ignore: int
    ran_by: str
    version: str
    folder: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class RayBlocks:
    """Runs blocks on a cluster; those of arms that exist in this process only, here.

    Attributes:
        address: `auto` for the cluster of this machine, or `HOST:PORT` of one.
        threads: That each block takes.
    """

    address: str
    threads: int

    def __call__(self, blocks: Sequence[ArmBlock]) -> Iterator[tuple[ArmBlock, BlockScores]]:
        """Run blocks, and yield them as they are done.

        Raises:
            BackendError: There is no such cluster, or none that takes a block, workers die of a
                block again and again, or one would run an arm otherwise than this machine does.
        """
        sent = [(block, task) for block in blocks if (task := _task(block)) is not None]
        if sent:
            with _cluster(self.address) as ray:
                _check_cpus(ray, self.threads, self.address)
                yield from self._spread(ray, sent)
        away = {block.key for block, _ in sent}
        yield from score_here([block for block in blocks if block.key not in away])

    def _spread(
        self, ray: Any, sent: Sequence[tuple[ArmBlock, _Task]]
    ) -> Iterator[tuple[ArmBlock, BlockScores]]:
        # A retry is for workers that are lost: an exception of ours is the same each time.
        remote = ray.remote(num_cpus=self.threads, max_retries=_RETRIES)(_scored)
        waiting = {remote.remote(task): block for block, task in sent}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            block = waiting.pop(done[0])
            with _named_failures(ray, block):
                scores: BlockScores = ray.get(done[0])
            yield block, scores


def check_ray(threads: int | None) -> None:
    """Refuse what cannot be spread before anything is made.

    Raises:
        BackendError: Ray is not installed.
        ConfigError: The plan says no number of threads.
    """
    if importlib.util.find_spec("ray") is None:
        raise BackendError(
            "Ray is not installed.", hint="Install it: pip install 'moh-deploy[ray]'."
        )
    if threads is None:
        raise ConfigError(
            "samples are to be spread over machines, and the plan has no `threads`: with another"
            " number of them on each machine results could differ.",
            hint="Add `threads: 1` to the plan.",
        )


def pickled(metrics: Sequence[Metric]) -> bytes:
    """Return metrics as they are sent to other machines.

    Raises:
        ConfigError: One is a function that cannot be found by its name, a lambda say.
    """
    try:
        return pickle.dumps(metrics)
    # What a function holds decides which of them it is.
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"a metric cannot be sent to other machines: {error}.",
            hint="Make it a function with a name of its own in its module.",
        ) from error


def _task(block: ArmBlock) -> _Task | None:
    arm = block.arm.arm
    # A server is one machine already.
    alone = None if arm.elsewhere is not None else arm.model.alone(arm.variant)
    if alone is None:
        return None
    model, variant = alone
    return _Task(
        replace(arm, model=model, variant=variant, package=None),
        block.arm.base,
        block.runs,
        pickled(block.metrics),
        block.ignore,
        ran_by(block.arm),
        moh_deploy.__version__,
        os.getcwd(),
        tuple(sys.path),
    )


def _scored(task: _Task) -> BlockScores:
    """Run a block in a worker."""
    _check_reachable(task)
    # The process is Ray's, and does nothing but tasks.
    os.chdir(task.folder)
    sys.path += [name for name in task.path if name not in sys.path]
    metrics: Sequence[Metric] = pickle.loads(task.metrics)
    with ExitStack() as stack:
        opened = open_arms([task.arm], task.base, stack)[task.arm.name]
        _check_same(opened, task.ran_by)
        return [run_scores(opened, run, metrics, task.ignore) for run in task.runs]


def _check_reachable(task: _Task) -> None:
    """Refuse a machine that has not what the plan names, by its name: there may be many."""
    model = task.arm.model
    paths = [Path(task.folder), *([model.path] if isinstance(model, OnnxFile) else [])]
    # A relative path begins at the folder here, too.
    missing = [path for path in paths if not (Path(task.folder) / path).exists()]
    with named_errors(task.arm.name):
        if missing:
            raise BackendError(
                f"machine '{platform.node()}' of the cluster has no {missing[0]}.",
                hint="Give all machines the same files by the same paths, by a shared file system"
                " say, or leave that one out of the cluster.",
            )
        if task.version != moh_deploy.__version__:
            raise BackendError(
                f"machine '{platform.node()}' of the cluster has moh-deploy"
                f" {moh_deploy.__version__}, expected {task.version} as on this one."
            )


def _check_same(opened: OpenedArm, expected: str) -> None:
    got = ran_by(opened)
    with named_errors(opened.arm.name):
        if got != expected:
            raise BackendError(
                f"a machine of the cluster runs it by {got}, expected {expected} as on this one:"
                " results would not be the same bit for bit."
            )


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, unless this process is connected to one already."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise BackendError(
            f"there is no Ray cluster at {address}: {error}",
            hint="`ray start --head` starts one on this machine.",
        ) from error
    except RuntimeError as error:
        raise BackendError(
            f"the Ray cluster at {address} cannot be used: {' '.join(str(error).split())}",
            hint="Install on all machines what is installed on this one.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_cpus(ray: Any, threads: int, address: str) -> None:
    """Refuse a cluster without a machine that takes a block: Ray would wait for one for ever."""
    most = max(
        (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0
    )
    if threads > most:
        raise BackendError(
            f"a block takes {threads} threads, and no machine of the Ray cluster at {address} has"
            f" more than {most:g} CPUs.",
            hint="Give the plan fewer `threads`.",
        )


@contextmanager
def _named_failures(ray: Any, block: ArmBlock) -> Iterator[None]:
    name, start = block.key
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause: Exception = error.cause
        if not isinstance(cause, MoHDeployError) and _is_of_import(cause):
            said = str(cause).strip().splitlines()[-1].strip()
            raise BackendError(
                f"arm '{name}' cannot run: a machine of the cluster has no moh-deploy, or another"
                f" version of it, or not the modules of a metric: {said}.",
                hint="Install on all machines what is installed on this one.",
            ) from error
        # What was raised in the worker, as if it had been here.
        raise cause from error
    except ray.exceptions.RayError as error:
        raise BackendError(
            f"arm '{name}' cannot run: of the block of runs from {start} on,"
            f" {_RETRIES + 1} workers were lost: {type(error).__name__}.",
            hint="What was scored before is kept where `--keep-scores` says.",
        ) from error


def _is_of_import(cause: Exception) -> bool:
    # Ray has words of its own where a worker cannot import the function that it is to run, or its
    # arguments' types.
    words = ("failed to import on the worker", "ModuleNotFoundError")
    return isinstance(cause, ImportError) or any(word in str(cause) for word in words)
