"""Whatever runs on arrays: a package, an engine, an ONNX file, an original, a Polygraphy runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.runtime.runner import Kernels, ReadyModel
from moh_deploy.runtime.tensorrt.engine_reading import read_engine_dir
from moh_deploy.runtime.tensorrt.engine_runs import open_engine
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class Model:
    """A model that is named, and not loaded.

    Attributes:
        name: In the words of a report.
        loaded: Loads it for a while.
    """

    name: str
    loaded: Callable[[], AbstractContextManager[ReadyModel]]


class RunnableOriginal(Protocol):
    """An original model; `moh_deploy.load_original` returns one."""

    @property
    def name(self) -> str: ...

    def run(self, arguments: Sequence[Array]) -> list[Array]: ...


class InferenceRunner(Protocol):
    """Polygraphy's `BaseRunner`, as far as it is used here."""

    name: str

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def get_input_metadata(self, use_numpy_dtypes: bool) -> Mapping[str, Any]: ...

    def infer(self, feed_dict: Mapping[str, Array]) -> Mapping[str, Array]: ...


def onnx_model(
    source: OnnxPackage | Path,
    name: str,
    kernels: Kernels = "auto",
    *,
    optimize: bool = True,
    extra_outputs: Sequence[str] = (),
) -> Model:
    """Return a package, or an ONNX file, in ONNX Runtime; see `open_session`."""

    @contextmanager
    def loaded() -> Iterator[ReadyModel]:
        session = open_session(
            source, kernels=kernels, optimize=optimize, extra_outputs=extra_outputs
        )
        yield ReadyModel(session.inputs, session.run)

    return Model(name, loaded)


def engine_model(root: Path, kernels: Kernels = "auto") -> Model:
    """Return an engine that `moh-deploy build` wrote.

    Raises:
        PackageError: It is none, or has changed since.
    """
    manifest = read_engine_dir(root)

    @contextmanager
    def loaded() -> Iterator[ReadyModel]:
        runner = open_engine(root, kernels)
        with runner.engine:
            yield ReadyModel(manifest.inputs, runner.run)

    return Model(f"engine {root}", loaded)


def original_model(original: RunnableOriginal, package: OnnxPackage) -> Model:
    """Return an original model, whose inputs and outputs are called as those of its package."""
    inputs = package.manifest.inputs
    outputs = [spec.name for spec in package.manifest.outputs]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = original.run([feeds[spec.name] for spec in inputs])
        return dict(zip(outputs, found, strict=True))

    @contextmanager
    def loaded() -> Iterator[ReadyModel]:
        yield ReadyModel(inputs, run)

    return Model(original.name, loaded)


def runner_model(runner: InferenceRunner) -> Model:
    """Return a runner of Polygraphy's, which keeps its outputs in memory that it uses again."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.array(value) for name, value in runner.infer(feed_dict=feeds).items()}

    @contextmanager
    def loaded() -> Iterator[ReadyModel]:
        runner.activate()
        try:
            metadata = runner.get_input_metadata(use_numpy_dtypes=False)
            inputs = tuple(
                TensorInfo(name, str(one.dtype), tuple(map(str, one.shape or ())))
                for name, one in metadata.items()
            )
            yield ReadyModel(inputs, run)
        finally:
            runner.deactivate()

    return Model(f"Polygraphy runner {runner.name}", loaded)
