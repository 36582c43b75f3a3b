"""What takes part in a benchmark: loaded models of any kind that run on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.perf.bench.fresh_ort import OrtTask
from moh_deploy.perf.bench.fresh_run import FreshTask
from moh_deploy.perf.bench.original import Original
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session, runtime_name
from moh_deploy.runtime.runner import Kernels, KernelUse
from moh_deploy.system.npz import Array
from moh_deploy.validate.input_sets import InputSet
from moh_deploy.validate.matching import match_inputs
from moh_deploy.validate.tolerances import rules_of


class Contestant(Protocol):
    """A loaded model. Inputs are named as those of the first package, and in that order."""

    @property
    def kernel_use(self) -> KernelUse | None:
        """The kernel library that it was given, or why it was not; None of what takes none."""

    @property
    def runtime(self) -> str:
        """Name and version of what runs it, in words."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """The rules of `TOLERANCES` for what it computes in, that of its outputs left out."""

    def outputs(self, one: InputSet) -> list[Array]:
        """Run it once and return its outputs, in order.

        Raises:
            ConfigError: It does not take these inputs.
            BackendError: The runtime failed.
        """

    def bound(self, one: InputSet) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed. Raises as `outputs` does."""

    def fresh_task(self, inputs: Path) -> FreshTask | None:
        """Return what loads it and runs it on a file of inputs in a process of its own; None if
        that cannot be."""


@dataclass(frozen=True)
class Entry:
    """A contestant that is not loaded.

    Attributes:
        name: What reports and gates call it.
        is_baseline: It is there to be compared with.
        load: Loads it, to be run on these inputs; what has to be undone goes on the stack.
    """

    name: str
    is_baseline: bool
    load: Callable[[Sequence[InputSet], ExitStack], Contestant]


@dataclass(frozen=True)
class OrtContestant:
    """A model in ONNX Runtime: a package, or a file."""

    name: str
    source: OnnxPackage | Path
    kernels: Kernels
    threads: int | None
    runner: OrtRunner

    @classmethod
    def load(
        cls, name: str, source: OnnxPackage | Path, kernels: Kernels, threads: int | None
    ) -> OrtContestant:
        """Open a session.

        Raises:
            BackendError, PackageError: See `open_session`.
        """
        runner = open_session(source, kernels=kernels, threads=threads)
        return cls(name, source, kernels, threads, runner)

    @property
    def kernel_use(self) -> KernelUse:
        """See `Contestant.kernel_use`."""
        return self.runner.kernels

    @property
    def runtime(self) -> str:
        """See `Contestant.runtime`."""
        return runtime_name()

    @property
    def precisions(self) -> tuple[str, ...]:
        """See `Contestant.precisions`."""
        if isinstance(self.source, Path):
            return ()
        return rules_of(self.source.manifest.precision, self.runner)

    def outputs(self, one: InputSet) -> list[Array]:
        """Run once; see `Contestant.outputs`."""
        return list(self.runner.run(self._feeds(one)).values())

    def bound(self, one: InputSet) -> Callable[[], object]:
        """Return a run; see `Contestant.bound`."""
        return self.runner.bound(self._feeds(one))

    def fresh_task(self, inputs: Path) -> OrtTask:
        """Return what opens a session of its own."""
        if isinstance(self.source, Path):
            return OrtTask(self.source, inputs, self.threads, self.kernels, "float32")
        compute_type = self.source.manifest.compute_type
        return OrtTask(self.source.model_path, inputs, self.threads, self.kernels, compute_type)

    def _feeds(self, one: InputSet) -> dict[str, Array]:
        return fed_by(one, self.runner.inputs, self.name)


@dataclass(frozen=True)
class EagerContestant:
    """The original as it is."""

    original: Original
    threads: int | None
    kernel_use: KernelUse | None = None
    precisions: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """See `Contestant.runtime`."""
        return self.original.runtime

    def outputs(self, one: InputSet) -> list[Array]:
        """Run once; see `Contestant.outputs`."""
        return self.original.run(list(one.inputs.values()))

    def bound(self, one: InputSet) -> Callable[[], object]:
        """Return a run; see `Contestant.bound`."""
        return self.original.bound(list(one.inputs.values()))

    def fresh_task(self, inputs: Path) -> FreshTask | None:
        """Return what loads the checkpoint again."""
        return self.original.fresh_task(inputs, self.threads)


def fed_by(one: InputSet, specs: Sequence[TensorInfo], name: str) -> dict[str, Array]:
    """Return inputs by the names that a contestant has for them.

    Raises:
        ConfigError: It does not take them.
    """
    try:
        names = match_inputs([spec.name for spec in specs], list(one.inputs), name)
        feeds = {theirs: one.inputs[ours] for theirs, ours in names.items()}
        check_inputs(specs, feeds)
    except ConfigError as error:
        raise ConfigError(
            f"{name} does not take the {one.name} inputs of the first package: {error.message}",
            hint=error.hint,
        ) from error
    return feeds
