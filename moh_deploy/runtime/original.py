"""Run and measure the model that a package was made from; it brings its framework along.

This module imports no PyTorch: `Original` says what it needs of a loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from moh_deploy.package import Manifest, OnnxPackage, Runtime, TensorInfo
from moh_deploy.package.cache_buffers import in_given_buffers, without_room
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, RunnerAround, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.system.npz import Array


class Original(Protocol):
    """An original; `moh_deploy.load_original` returns one."""

    @property
    def name(self) -> str:
        """The model's name in the words of a report."""

    @property
    def sha256(self) -> str | None:
        """Digest of its checkpoint; None for a model in memory."""

    @property
    def runtime(self) -> str:
        """Name and version of its framework."""

    def called_by(self, manifest: Manifest) -> Original:
        """Return it as a package says that it is called: arrays become nested arguments."""

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        """Return its outputs, in order, of the package's inputs, in order."""

    def bound(self, arguments: Sequence[Array]) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed."""

    def on_threads(self, threads: int | None) -> AbstractContextManager[None]:
        """Let it use so many threads meanwhile; None for its runtime's own choice."""

    def write_onnx(self, path: Path, package: OnnxPackage) -> None:
        """Export it as its framework does by itself, for the sizes that a package takes."""

    def loader(self) -> Callable[[], Original] | None:
        """Return a function that loads it again in another process; None for a model in memory."""


RunnableOriginal: TypeAlias = Original
"""What the signature of `polygraphy_runner` calls it."""


@dataclass(frozen=True)
class OriginalModel(Model):
    """An original, called by the names of inputs and outputs of a package made from it."""

    named: str
    load: Callable[[], Original]
    manifest: Manifest

    @classmethod
    def of(cls, original: Original, manifest: Manifest) -> OriginalModel:
        """Return one that is loaded already."""
        return cls(original.name, lambda: original, manifest)

    @property
    def name(self) -> str:
        return self.named

    def open(self, variant: Variant = AS_IT_IS) -> OriginalRunner:
        """Load it, and let it use as many threads as the variant says until it is closed."""
        # Threads are set for the whole framework, not for one model: they are put back when it is
        # closed.
        original, closing = self.load().called_by(self.manifest), ExitStack()
        closing.enter_context(original.on_threads(variant.threads))
        outputs = tuple(output.name for output in self.manifest.outputs)
        return OriginalRunner(original, self.manifest.inputs, outputs, self.manifest, closing)

    def alone(self, variant: Variant) -> tuple[Model, Variant] | None:
        # A loaded model cannot be pickled; what loads it from its checkpoint can.
        load = self.load().loader()
        return None if load is None else (OriginalModel(self.named, load, self.manifest), variant)


@dataclass(frozen=True)
class OriginalRunner(Runner):
    """An original as it runs by itself."""

    original: Original
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    manifest: Manifest
    _closing: ExitStack = field(repr=False)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self.original.run(self._arguments(inputs))
        made = dict(zip(self.outputs, found, strict=True))
        return in_given_buffers(made, inputs, self.manifest)

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        return self.original.bound(self._arguments(inputs))

    def describe(self) -> Description:
        return Description(
            self.original.runtime, KernelUse(None, "the original has no kernels", None)
        )

    def close(self) -> None:
        self._closing.close()

    def _arguments(self, inputs: Mapping[str, Array]) -> list[Array]:
        # Its caches have no room: they grow.
        taken = without_room(inputs, self.manifest)
        # In the order of the package: frameworks know no names of arguments.
        return [taken[spec.name] for spec in self.inputs if spec.name in taken]


@dataclass(frozen=True)
class PlainExport(Model):
    """An original as its framework exports it by itself, in ONNX Runtime."""

    original: Original
    package: OnnxPackage  # says for which sizes
    path: Path

    @property
    def name(self) -> str:
        return f"{self.original.name}, exported by its framework"

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        """Export it, and load that."""
        self.path.parent.mkdir()
        self.original.write_onnx(self.path, self.package)
        return self._written().open(variant)

    def alone(self, variant: Variant) -> tuple[Model, Variant] | None:
        # `open` has written the file by then: a process of its own must not pay for the export.
        return self._written(), variant

    def _written(self) -> Model:
        manifest = self.package.manifest
        return OnnxFile(self.path) if manifest.caches is None else _Growing(self.path, manifest)


@dataclass(frozen=True)
class _Growing(Model):
    """An ONNX model whose caches grow, which is given those of a package, which have room."""

    path: Path
    manifest: Manifest  # of the package

    @property
    def name(self) -> str:
        return OnnxFile(self.path).name

    def import_runtime(self, runtime: Runtime) -> None:
        OnnxFile(self.path).import_runtime(runtime)

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        return _GrowingRunner(OnnxFile(self.path).open(variant), self.manifest)


@dataclass(frozen=True)
class _GrowingRunner(RunnerAround):
    runner: Runner
    manifest: Manifest

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:  # type: ignore[override]
        return self.manifest.inputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        made = self.runner.run(without_room(inputs, self.manifest))
        return in_given_buffers(made, inputs, self.manifest)

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        return self.runner.bound(without_room(inputs, self.manifest))


# Wrap a runner that was made with Polygraphy as a model of ours, without importing Polygraphy.


class InferenceRunner(Protocol):
    """Polygraphy's `BaseRunner`, as far as it is used here."""

    name: str

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def get_input_metadata(self, use_numpy_dtypes: bool) -> Mapping[str, Any]: ...

    def infer(self, feed_dict: Mapping[str, Array]) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class PolygraphyModel(Model):
    """A runner that was made with Polygraphy, as a model that can be opened."""

    runner: InferenceRunner

    @property
    def name(self) -> str:
        return f"Polygraphy runner {self.runner.name}"

    def open(self, variant: Variant = AS_IT_IS) -> _Activated:
        """Activate it; it runs in no other way than its own."""
        self.runner.activate()
        return _Activated(self.runner)


@dataclass(frozen=True)
class _Activated(Runner):
    runner: InferenceRunner
    # Polygraphy tells the outputs only with a run.
    outputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:  # type: ignore[override]
        metadata = self.runner.get_input_metadata(use_numpy_dtypes=False)
        return tuple(
            TensorInfo(name, str(item.dtype), tuple(map(str, item.shape or ())))
            for name, item in metadata.items()
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Polygraphy keeps outputs in memory that it uses again.
        found = self.runner.infer(feed_dict=inputs)
        return {name: np.array(value) for name, value in found.items()}

    def describe(self) -> Description:
        return Description("Polygraphy", KernelUse(None, "Polygraphy knows of none", None))

    def close(self) -> None:
        self.runner.deactivate()
