"""An engine directory where a package is run or verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo, VectorSet
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.runner import Kernels, KernelUse
from moh_deploy.runtime.tensorrt.engine import Engine
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_NAME, EngineLayer, EngineManifest
from moh_deploy.system.digest import sha256_of
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class EngineRunner:
    """An engine as a `Runner`: what runs its layers was read from the network when it was built."""

    engine: Engine

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the engine takes, in order."""
        return self.engine.manifest.inputs

    @property
    def layer_impl(self) -> Mapping[str, LayerImpl]:
        """Each layer's attention and router that is no plain operators, to what runs it."""
        impls = ((f"{run.path} (router)", run.router_runs_as) for run in self.layer_runs)
        attention = ((run.path, run.runs_as) for run in self.layer_runs)
        return {name: impl for name, impl in (*attention, *impls) if impl is not None}

    @property
    def layer_runs(self) -> tuple[LayerRun, ...]:
        """What runs each layer, in the manifest's order."""
        return tuple(map(_layer_run, self.engine.manifest.layers))

    @property
    def kernels(self) -> KernelUse:
        """The plugin library."""
        plugin = self.engine.manifest.plugin
        if plugin is None:
            return KernelUse(None, "the engine was built without plugins", None)
        return KernelUse(self.engine.root / (plugin.file or ENGINE_NAME), None, None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        return self.engine.run(inputs)


def open_engine(root: Path, kernels: Kernels) -> EngineRunner:
    """Load an engine.

    Args:
        root: The engine directory.
        kernels: `auto`, or `require` to refuse one with a layer that runs by no kernel.

    Raises:
        ConfigError: `kernels` is `off`.
        PackageError: It is none, or has changed since it was built.
        BackendError: It cannot run here, or a kernel that is required was not built in.
    """
    if kernels == "off":
        raise ConfigError(
            f"kernels is off, but what runs the layers of {root} was decided when it was built.",
            hint="Run its package with --kernels off.",
        )
    runner = EngineRunner(Engine(root))
    others = [run.path for run in runner.layer_runs if run.runs_as != "kernel"]
    if kernels == "require" and others:
        runner.engine.close()
        raise BackendError(
            f"kernels are required, but {root} was built without them for {', '.join(others)}.",
            hint="Build it with --require-kernels: that says why.",
        )
    return runner


def engines_package(root: Path, manifest: EngineManifest, package: Path | None) -> OnnxPackage:
    """Return the package that an engine was built from, as one of the engine's precision.

    Raises:
        ConfigError: None was named, or it is another one.
        PackageError: It is none.
    """
    if package is None:
        raise ConfigError(
            f"{root} is an engine, which holds no recorded runs to compare with.",
            hint="Name the package that it was built from: --package DIR.",
        )
    opened = OnnxPackage.open(package)
    if sha256_of(package / MANIFEST_NAME) != manifest.package_sha256:
        raise ConfigError(
            f"{root} was not built from {package}, or that has changed since.",
            hint="Name the package that it was built from, or build the engine again.",
        )
    return replace(opened, manifest=replace(opened.manifest, precision=manifest.precision))


def fitting(
    root: Path, manifest: EngineManifest, vectors: tuple[VectorSet, ...]
) -> tuple[VectorSet, ...]:
    """Return the recorded runs of sizes that the engine was built for.

    Raises:
        ConfigError: There are none.
    """
    found = tuple(one for one in vectors if manifest.fits(one.sizes))
    if not found:
        raise ConfigError(
            f"no recorded run of the package is of sizes that {root} was built for.",
            hint="Build it with a --profile that has the example's sizes, or give --inputs.",
        )
    return found


def _layer_run(layer: EngineLayer) -> LayerRun:
    return LayerRun(
        layer.path, _impl(layer, layer.moh_impl), _impl(layer, layer.router_impl), None, None
    )


def _impl(layer: EngineLayer, implementation: str) -> LayerImpl | None:
    if implementation == "operators":
        return None
    if implementation == "kernel":
        return "kernel"
    return "dense" if layer.choice == "dense" else "function"
