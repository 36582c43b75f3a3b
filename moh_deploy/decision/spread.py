"""Run blocks of samples on a Ray cluster: more machines for quality, never for time.

Ray places, repeats and collects. What is lost with a worker is run again.
"""

import importlib.util
import os
import pickle
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from moh_deploy.decision.alternative import Alternative, open_alternatives
from moh_deploy.decision.score_alternatives import (
    AlternativeBlock,
    BlockScores,
    ran_by,
    run_scores,
    score_here,
)
from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.package import Manifest
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.task import Metric

# A block that kills its worker each time is at fault itself.
_RETRIES = 3
_SAME = "Install on all machines what is installed on this one."


@dataclass(frozen=True)
class RayBlocks:
    """Runs blocks on a cluster; those of alternatives that exist in this process only, here."""

    address: str  # `auto` for the cluster of this machine, or `HOST:PORT` of one
    threads: int  # that each block takes

    def __call__(
        self, blocks: Sequence[AlternativeBlock]
    ) -> Iterator[tuple[AlternativeBlock, BlockScores]]:
        """Run blocks, and yield them as they are done.

        Raises:
            BackendError: There is no such cluster, or none that takes a block, workers die of a
                block again and again, or one would run an alternative otherwise than this machine
                does.
        """
        # A server is one machine already, and some alternatives exist in this process only.
        alone = {
            block.key: None
            if alternative.elsewhere is not None
            else alternative.model.alone(alternative.variant)
            for block in blocks
            for alternative in (block.alternative.alternative,)
        }
        sent = [(block, found) for block in blocks if (found := alone[block.key]) is not None]
        with ExitStack() as stack:
            ray: Any = _connected(self.address, self.threads, stack) if sent else None
            waiting = {}
            for block, (model, variant) in sent:
                alternative = replace(
                    block.alternative.alternative, model=model, variant=variant, package=None
                )
                # A retry is for workers that are lost: an exception of ours is the same each time.
                remote = ray.remote(num_cpus=self.threads, max_retries=_RETRIES)(_scored)
                there = os.getcwd(), sys.path, ran_by(block.alternative)
                what = block.alternative.base, block.runs, pickle.dumps(block.metrics), block.ignore
                waiting[remote.remote(alternative, what, there)] = block
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                block = waiting.pop(done)
                try:
                    scores: BlockScores = ray.get(done)
                except ray.exceptions.RayError as error:
                    raise _failure(block, error) from error
                yield block, scores
        yield from score_here([block for block in blocks if alone[block.key] is None])


def check_ray(threads: int | None, metrics: Sequence[Metric]) -> None:
    """Refuse what cannot be spread before anything is made.

    Raises:
        BackendError: Ray is not installed.
        ConfigError: The plan says no number of threads, or a metric is a function that cannot be
            found by its name, a lambda say.
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
    try:
        pickle.dumps(metrics)
    # What a function holds decides which of them it is.
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"a metric cannot be sent to other machines: {error}.",
            hint="Make it a function with a name of its own in its module.",
        ) from error


def _scored(
    alternative: Alternative,
    what: tuple[Manifest, Sequence[LabelledRun], bytes, int],
    there: tuple[str, list[str], str],
) -> BlockScores:
    """Run a block in a worker, as the process does that sent it.

    Args:
        alternative: Of the block; not open.
        what: Base, runs, metrics, and labels to ignore, of the block.
        there: Where relative paths begin, where Python finds modules, and what runs the
            alternative.
    """
    folder, path, expected = there
    # The process is Ray's, and does nothing but tasks.
    os.chdir(folder)
    sys.path += [name for name in path if name not in sys.path]
    base, runs, metrics, ignore = what
    try:
        with ExitStack() as stack:
            opened = open_alternatives([alternative], base, stack)[alternative.name]
            if (got := ran_by(opened)) != expected:
                raise BackendError(
                    f"alternative '{alternative.name}' cannot run: it is run by {got}, expected"
                    f" {expected} as on the machine that compares: results would not be the same"
                    " bit for bit."
                )
            # Unpickled now that the modules of a user are found.
            return [run_scores(opened, run, pickle.loads(metrics), ignore) for run in runs]
    except MoHDeployError as error:
        where = f"(Machine '{platform.node()}' of the cluster.)"
        raise type(error)(f"{error.message} {where}", hint=error.hint) from error


def _connected(address: str, threads: int, stack: ExitStack) -> Any:
    """Return Ray, connected to a cluster."""
    import ray

    # Unless this process is connected to one already.
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BackendError(
                f"the Ray cluster at {address} cannot be used: {' '.join(str(error).split())}",
                hint=f"`ray start --head` starts one on this machine. {_SAME}",
            ) from error
        stack.callback(ray.shutdown)
    most = max(
        (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0
    )
    # Ray would wait for such a machine for ever.
    if threads > most:
        raise BackendError(
            f"a block takes {threads} threads, and no machine of the Ray cluster at {address} has"
            f" more than {most:g} CPUs.",
            hint="Give the plan fewer `threads`.",
        )
    return ray


def _failure(block: AlternativeBlock, error: Exception) -> MoHDeployError:
    """Return what was raised in a worker; or why there is no worker to raise anything."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, MoHDeployError):
        return cause
    name, start = block.key
    # Ray tells of a module that a worker has not in many lines.
    said = f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1].strip()}"
    return BackendError(
        f"alternative '{name}' cannot run: workers of the cluster failed at runs {start} and on:"
        f" {said}",
        hint=f"{_SAME} What was scored before is kept where `--keep-scores` says.",
    )
