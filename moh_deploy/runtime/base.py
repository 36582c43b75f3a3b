"""The types that everything which runs a model shares: `Runner`, `Variant`, `Model`.

    Model    names a model without loading it: a package, an engine directory, an ONNX file, ...
    Variant  says in which way to open it
    Runner   is a model that was opened, in whichever runtime

`runtime.open_runner` finds the `Model` of a path. A new runtime is a subclass of `Model` and one of
`Runner` in a folder of its own, and an entry point in `moh_deploy.model_kinds` (`add_ons`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeAlias

import onnx

from moh_deploy.errors import BackendError
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import ComputeType, OnnxPackage, Runtime, TensorInfo
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import Kernels, KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress

GraphEdit: TypeAlias = Callable[[onnx.GraphProto], object]
"""Changes a graph, whose weights may not be loaded, before it is opened; see `moh_deploy.graph`."""


@dataclass(frozen=True)
class Variant:
    """The way in which a model is opened: runtime, kernels, threads, changes of its graph."""

    runtime: Runtime = "onnxruntime"  # what a package or an ONNX model is opened with
    # `auto` runs MoH nodes on kernels where there are some, `off` runs their function bodies,
    # `require` refuses to run if a MoH node that was not chosen to be dense has no kernel.
    kernels: Kernels = "auto"
    # Let the runtime rewrite the graph. Without, every node runs as it is written.
    optimize: bool = True
    threads: int | None = None  # threads within one operator; None lets the runtime choose
    # Threads wait for work in a loop, which starts an operator microseconds earlier and takes a
    # core meanwhile: for what is timed. Without, memory is given back after each run.
    spins: bool = True
    # Each run has other sizes than the last, as steps of a decoder do: ONNX Runtime plans no memory
    # for those of one run.
    sizes_change: bool = False
    extra_outputs: tuple[str, ...] = ()  # names of inner values to return besides the outputs
    # Changes of the graph, in their order: gates fed, routing fixed, noisy weights.
    edits: tuple[GraphEdit, ...] = ()
    # Round what every operator computes in float16, as GPUs do. ONNX Runtime on the CPU computes
    # runs of such operators in float32, and rounds at their ends only.
    round_results: bool = False
    # What kernels may round the operands of attention's products to; None takes what the package
    # says, which is float32 for a model that is in none.
    compute_type: ComputeType | None = None
    library: Path | None = None  # a kernel library other than the installation's
    # Where a runtime is known to end its process with some models (OpenVINO), open this one in a
    # process of its own: it is compared, and not timed.
    apart: bool = False
    # One of those that the library has here (`amx_bf16`, `avx512_bf16`, `avx512`, `avx2`,
    # `baseline`); None for the best.
    instruction_set: str | None = None

    def edited(self, *edits: GraphEdit) -> Variant:
        """Return the variant with more changes of the graph, after those that it has."""
        return replace(self, edits=(*self.edits, *edits))

    def returning(self, names: Sequence[str]) -> Variant:
        """Return the variant with more inner values among its outputs."""
        return replace(self, extra_outputs=(*self.extra_outputs, *names))


# Variants are edits before a model is opened, and not runners around runners: a runtime fuses,
# folds and places what it is given, so what an edit changes cannot be changed from outside.
AS_IT_IS: Variant = Variant()
FUNCTION_BODIES: Variant = Variant(kernels="off", optimize=False)
"""What kernels and optimisations are compared with."""


@dataclass(frozen=True)
class Description:
    """Says what runs a model, and each of its layers."""

    runtime: str  # name and version of the runtime
    kernels: KernelUse  # the kernel library that is used, or why none is
    # Name of each MoH node to what runs it, as the runtime reports it or the choice says. A node
    # that depends on sizes is there twice.
    layer_impl: Mapping[str, LayerImpl] = field(default_factory=dict)
    # The same by layer of the package, in the manifest's order; empty for a model without manifest.
    layer_runs: tuple[LayerRun, ...] = ()
    # The operators of each layer, in the same order; empty where they are not known.
    layer_nodes: tuple[LayerNodes, ...] = ()
    device: str | None = None  # what it runs on, where that is not the CPU
    notes: tuple[str, ...] = ()  # what could not be returned, and why

    @property
    def kernel_nodes(self) -> int:
        """The number of MoH nodes that run on a kernel."""
        # Counts nodes, not layers: a router and projections are nodes of their own.
        return list(self.layer_impl.values()).count("kernel")

    @property
    def function_nodes(self) -> int:
        """The number of MoH nodes that run as function bodies because they lack a kernel."""
        return list(self.layer_impl.values()).count("function")

    def where(self) -> str:
        """Return `TensorRT 10.9 on NVIDIA L4`; a runtime on the CPU by its name alone."""
        return self.runtime if self.device is None else f"{self.runtime} on {self.device}"


class Runner(ABC):
    """A model that was opened: arrays in, arrays out. A context manager that gives memory back."""

    # Fields in subclasses that know both beforehand, properties in those that ask for them.
    inputs: tuple[TensorInfo, ...]  # what it takes, in order
    # Names of what it returns, in order, extra ones last; empty where only a run tells.
    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: Name to array, for every input.

        Returns:
            Name to array, for every output, extra outputs included.

        Raises:
            ConfigError: An input is missing, unknown, of a wrong dtype or shape, or holds a number
                that a table of the model has no row for.
            BackendError: The runtime failed.
        """

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Run the model once, and return some of its outputs. Raises as `run` does."""
        # What a runtime need not hand over, an override leaves where it is.
        results = self.run(inputs)
        return {name: results[name] for name in outputs}

    def steps(
        self, state: Mapping[str, Array], following: Mapping[str, str]
    ) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """Return a call that runs the model once more, behind what its last run left.

        A decoder's caches are such a state: each run takes those that the last run returned.

        Args:
            state: Inputs of the first run that later runs take from results, one or more.
            following: Name of each of them to the output that takes its place in the next run.

        Returns:
            A call that takes all other inputs, and returns all other outputs; it raises as `run`
            does.
        """
        # What a runtime need not copy from run to run, an override leaves where it is.
        held = dict(state)

        def step(inputs: Mapping[str, Array]) -> dict[str, Array]:
            results = self.run({**inputs, **held})
            held.update({name: results.pop(output) for name, output in following.items()})
            return results

        return step

    @abstractmethod
    def describe(self) -> Description:
        """Say what runs each layer."""

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs the model on these inputs: to be timed. Raises as `run` does."""
        # What a runtime can prepare, such as copies to its own memory, an override leaves out of
        # the call.
        return lambda: self.run(inputs)

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Give back what is held outside of Python."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RunnerAround(Runner):
    """Base of runners that wrap another: they record its runs, or change its results."""

    runner: Runner

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:  # type: ignore[override]
        return self.runner.inputs

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.runner.outputs

    def describe(self) -> Description:
        return self.runner.describe()

    def close(self) -> None:
        self.runner.close()


class ModelInterface(Protocol):
    """A manifest of a package or an engine, as far as it says what the model takes and returns."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def precision(self) -> str: ...


class Model(ABC):
    """A model that is named, and not loaded. Each kind of path is a subclass."""

    # It is of a runtime's own form, made for certain sizes: no variant can change its graph or
    # return inner values.
    is_compiled: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The kind of model and its place, in the words of a report: `package build/model`."""

    @abstractmethod
    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        """Load the model, in one way.

        Raises:
            BackendError: The runtime is not there, refuses the model, or kernels are required and
                not used.
            ConfigError: An option of the variant is unknown, or not for it.
            PackageError: It cannot be read, or has changed since it was written.
        """

    def import_runtime(self, runtime: Runtime) -> None:  # noqa: B027  (some import it as they load)
        """Import what `open` needs: it is no part of the time that loading takes.

        Args:
            runtime: That of the variant.
        """

    def alone(self, variant: Variant) -> tuple[Model, Variant] | None:
        """Return a model and variant that a process of its own can open; None if none can.

        It can be pickled, and opening it does nothing but load the model.
        """
        return self, variant


class ModelKind(Protocol):
    """The class of a `Model` that a path can name; add-ons register theirs (`add_ons`)."""

    def is_one(self, path: Path) -> bool:
        """Tell whether a path names such a model, by little reading; a static method."""

    def __call__(self, path: Path) -> Model: ...


class Deployed(Model):
    """A directory that moh-deploy wrote: it says what it takes, and what it was made from."""

    root: Path

    @property
    @abstractmethod
    def manifest(self) -> ModelInterface:
        """The manifest, which says what it takes and returns.

        Raises:
            PackageError: It is not a package, or has changed since it was written.
        """

    @abstractmethod
    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        """Return the package that it is, or was made from, with this model's precision.

        Args:
            package: What the user says that it was made from.
            staged: The package is still being written.

        Raises:
            PackageError: It is not a package, or has changed since it was written.
            ConfigError: `package` is missing, or not the one.
        """

    @property
    def preferred_runtime(self) -> Runtime | None:
        """Return the runtime that it was tuned for, or None. An engine has its own."""
        return None

    @property
    def holds_kernels(self) -> bool:
        """Tell whether our kernels are built into it, so that it cannot run without them."""
        return False

    def build_plain(self, package: Path, output: Path, progress: Progress) -> None:
        """Build the same once more, without our kernels, for `bench` to compare it with.

        Args:
            package: What it was built from.
            output: The directory to write.
            progress: What to report steps to.

        Raises:
            BackendError: It cannot be built here, or not at all.
        """
        raise BackendError(f"{self.name} is not built, but runs as it is.")

    def inspected(self) -> Report | None:
        """Return what it knows of itself; None of a package, whose layers are predicted."""
        return None

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether it was made for these sizes of the dynamic dimensions."""
        return True


# A runner that keeps what it returns, so that scores need no second run.


@dataclass(frozen=True)
class RecordingRunner(RunnerAround):
    """A runner that records its results."""

    runner: Runner
    # Names of what is kept of its results; the rest is as large as the model's activations.
    kept: frozenset[str]
    # Encloses a run, by its number from 0: it shows progress.
    step: Callable[[int], AbstractContextManager[None]]
    results: list[dict[str, Array]] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        with self.step(len(self.results)):
            found = self.runner.run(inputs)
        self.results.append({name: found[name] for name in self.kept & found.keys()})
        return found
