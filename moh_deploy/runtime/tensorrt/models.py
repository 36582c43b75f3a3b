"""Engine directories among the models that can be opened, and loaded engines as runners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.package.cache_buffers import rounded_to, with_dtypes
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Description, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs, check_room
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.tensorrt import engine_dir
from moh_deploy.runtime.tensorrt.build_plan import HARDWARE
from moh_deploy.runtime.tensorrt.build_report import EngineReport
from moh_deploy.runtime.tensorrt.device_work import DeviceWork, RunRefused, bound, time_in_turns
from moh_deploy.runtime.tensorrt.engine_contexts import GpuContext, HostContext, is_torch, stand_in
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.loading import LoadedEngine, on_first_gpu, open_engine
from moh_deploy.runtime.tensorrt.profiles import covers, profile_text
from moh_deploy.runtime.tensorrt.tool_lines import tool_lines
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress

# An engine that `moh-deploy build` wrote, ready to run.


class Engine:
    """An engine on the first GPU, for one thread at a time.

        with moh_deploy.Engine("build/engine") as engine:
            outputs = engine.run({"images": images})

    Args:
        root: The engine directory.

    Attributes:
        root: The engine directory.
        manifest: What `engine.json` says.

    Raises:
        PackageError: It is not an engine, or a file has changed since it was built.
        BackendError: It cannot run here: no GPU, another TensorRT or GPU than it was built for.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.manifest: engine_dir.EngineManifest = engine_dir.read_engine_dir(self.root)
        with on_first_gpu():
            self._loaded: LoadedEngine | None = open_engine(self.root, self.manifest)
        self._on_gpu: GpuContext | None = None
        self._on_host: HostContext | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: Name to tensor, for every input: arrays of numpy, or tensors of torch on the
                first GPU. Of all of these, the profile that is used is the first that has their
                sizes.

        Returns:
            Name to tensor, for every output. Of numpy: arrays of their own, computed. Of torch:
            tensors on the GPU; nothing was copied, and the run is enqueued on torch's current
            stream, not waited for. A cache that is written in place is the tensor that was given.

        Raises:
            ConfigError: An input is missing, unknown, of a wrong dtype or shape, not where it has
                to be, of sizes that no profile has, or has more tokens than a cache has room for.
            BackendError: TensorRT failed, or the engine is closed.
        """
        loaded = self._loaded
        if loaded is None:
            raise BackendError(f"{self.root} is closed.")
        # All of one kind: copying some of them in silence would cost what tensors on the GPU are to
        # save.
        from_torch = {name: is_torch(tensor) for name, tensor in inputs.items()}
        if len(set(from_torch.values())) > 1:
            raise ConfigError(
                "inputs are arrays of numpy and tensors of torch, expected either:"
                f" of torch are {', '.join(n for n, is_one in from_torch.items() if is_one)}."
            )
        if any(from_torch.values()):
            caches = self.manifest.caches
            counted = None if caches is None else caches.past_length
            profile = self._profile(
                {
                    name: stand_in(name, item, counted=name == counted)
                    for name, item in inputs.items()
                }
            )
            # Made when first needed: a context holds scratch memory on the GPU.
            with on_first_gpu():
                self._on_gpu = self._on_gpu or GpuContext(loaded, self.manifest.outputs)
                return self._on_gpu.run(inputs, profile)
        profile = self._profile(inputs)
        with on_first_gpu():
            self._on_host = self._on_host or HostContext(loaded, FLAVOURS[self.manifest.backend])
            return self._on_host.run(inputs, profile)

    def gpu_ms(self, inputs: Mapping[str, Array], *, graph: bool = False) -> float:
        """Return the milliseconds that the GPU takes for a run: a median, by its events.

        Inputs are copied to the GPU before, and outputs stay there: no copy is part of the time.

        Args:
            inputs: Name to array of numpy, for every input.
            graph: Launch each run as a CUDA graph. Else TensorRT enqueues its kernels one by one,
                which may take the CPU longer than they take the GPU.

        Raises:
            ConfigError: An input is wrong, as in `run`.
            BackendError: The driver or TensorRT refuses, the engine is closed, or, with `graph`,
                what TensorRT enqueues cannot be captured.
        """
        if self._loaded is None:
            raise BackendError(f"{self.root} is closed.")
        profile = self._profile(inputs)
        try:
            with DeviceWork() as gpu, gpu.scope():
                given = {name: (item.shape, gpu.upload(item)) for name, item in inputs.items()}
                call = bound(self._loaded.engine, profile, given, gpu)
                if graph:
                    gpu.elapsed_ms(call, 1)  # a first run loads kernels, which no capture allows
                    call = gpu.captured(call, 1)
                return time_in_turns({"engine": call}, gpu.elapsed_ms)["engine"]
        except RunRefused as error:
            raise BackendError(f"{error}.{self._loaded.log_tail()}") from error

    def close(self) -> None:
        """Give the GPU's memory back. The plugin library stays in the process."""
        if self._on_host is not None:
            self._on_host.close()
        # Contexts go before the engine.
        self._on_host = self._on_gpu = None
        self._loaded = None

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether a profile has these sizes of the dynamic dimensions."""
        return self.manifest.fits(sizes)

    def _profile(self, inputs: Mapping[str, Array]) -> int:
        """Check inputs, and return the number of the first profile with their sizes."""
        sizes, profiles = check_inputs(self.manifest.inputs, inputs), self.manifest.profiles
        if self.manifest.caches is not None:
            check_room(self.manifest.caches, sizes, inputs)
        if not self.fits(sizes):
            built_for = " and ".join(map(profile_text, profiles))
            got = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise ConfigError(
                f"{self.root} was built for {built_for}; got {got}.",
                hint="Build it with a --profile that has these sizes.",
            )
        return next((i for i, profile in enumerate(profiles) if covers(profile, sizes)), 0)


@dataclass(frozen=True)
class EngineDir(Deployed):
    """An engine that `moh-deploy build` wrote, read when it is first asked for something."""

    root: Path
    is_compiled: ClassVar[bool] = True

    @staticmethod
    def is_one(path: Path) -> bool:
        """Tell whether `moh-deploy build` wrote a directory, changed or not."""
        return engine_dir.is_engine_dir(path)

    @property
    def name(self) -> str:
        return f"engine {self.root}"

    @cached_property
    def manifest(self) -> engine_dir.EngineManifest:
        return engine_dir.read_engine_dir(self.root)

    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        """Return the package that the engine was built from; see `Deployed.made_from`."""
        manifest = self.manifest
        if package is None:
            raise ConfigError(
                f"{self.root} is an engine, which holds no recorded runs to compare with.",
                hint="Name the package that it was built from: --package DIR.",
            )
        opened = OnnxPackage.open(package)
        # The manifest has the digests of all other files, so it stands for the whole package.
        if sha256_of(package / MANIFEST_NAME) != manifest.package_sha256:
            raise ConfigError(
                f"{self.root} was not built from {package}, or that has changed since.",
                hint=_PACKAGE_IS_GONE
                if manifest.caches is not None and opened.manifest.caches is None
                else "Name the package that it was built from, or build the engine again.",
            )
        given = opened.manifest
        own = {info.name: info.dtype for info in (*given.inputs, *given.outputs)}
        # Caches are in the engine's dtypes. Others keep theirs when the package is lowered.
        dtypes = {
            info.name: info.dtype
            for info in (*manifest.inputs, *manifest.outputs)
            if info.dtype != own.get(info.name)
        }
        # Recorded runs are of the original; how close an engine has to be depends on its precision.
        return replace(
            opened,
            manifest=with_dtypes(replace(given, precision=manifest.precision), dtypes),
            vectors=tuple(rounded_to(vectors, dtypes) for vectors in opened.vectors),
        )

    @property
    def holds_kernels(self) -> bool:
        return any(
            "kernel" in (layer.moh_impl, layer.router_impl) for layer in self.manifest.layers
        )

    def build_plain(self, package: Path, output: Path, progress: Progress) -> None:
        """Build it of TensorRT's own layers; see `Deployed.build_plain`."""
        manifest = self.manifest
        levels = {theirs: ours for ours, theirs in HARDWARE.items()}
        # As a user would, since what builds stands above all that opens models.
        moh_deploy.build(
            package,
            backend=manifest.backend,
            output=output,
            precision=manifest.precision,
            profiles=[profile_text(profile) for profile in manifest.profiles],
            compute_capabilities=manifest.compute_capabilities,
            workspace=None if manifest.workspace_bytes is None else str(manifest.workspace_bytes),
            plain=True,
            version_compatible=manifest.version_compatible,
            hardware_compatibility=levels.get(manifest.hardware_compatibility or ""),
            refit=manifest.builder.refit,
            weight_streaming=manifest.builder.weight_streaming,
            builder_optimization_level=manifest.builder.optimization_level,
            progress=progress,
        )

    def inspected(self) -> EngineReport:
        size = (self.root / engine_dir.ENGINE_NAME).stat().st_size
        return EngineReport(self.root, self.manifest, size, tool_lines(self.root, self.manifest))

    def fits(self, sizes: Mapping[str, int]) -> bool:
        return self.manifest.fits(sizes)

    def open(self, variant: Variant = AS_IT_IS) -> EngineRunner:
        """Load the engine; see `Model.open`. Threads and optimisations do not apply."""
        if variant.runtime != "onnxruntime":
            raise ConfigError(
                f"runtime is {variant.runtime}, but {self.root} is an engine, which runs in its"
                " own.",
                hint="Run the package that it was built from.",
            )
        if variant.kernels == "off":
            raise ConfigError(
                f"kernels is off, but what runs the layers of {self.root} was decided when it was"
                " built.",
                hint="Run its package with --kernels off.",
            )
        if variant.extra_outputs or variant.edits:
            raise BackendError(f"{self.root} is an engine, whose inner values cannot be seen.")
        engine = Engine(self.root)
        outputs = tuple(output.name for output in engine.manifest.outputs)
        runner = EngineRunner(engine, engine.manifest.inputs, outputs)
        others = [
            run.path
            for run in runner.describe().layer_runs
            if run.runs_as != "kernel" or run.router_runs_as == "function"
        ]
        if variant.kernels == "require" and others:
            runner.close()
            raise BackendError(
                f"kernels are required, but {self.root} was built without them for"
                f" {', '.join(others)}.",
                hint="Build it with --require-kernels: that says why.",
            )
        return runner


@dataclass(frozen=True)
class EngineRunner(Runner):
    """An engine on the first GPU. What runs its layers was read from its network when built."""

    engine: Engine
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.engine.run(inputs)

    def describe(self) -> Description:
        manifest = self.engine.manifest
        title = FLAVOURS[manifest.backend].title
        runs = tuple(
            LayerRun(layer.path, _impl(layer, layer.moh_impl), _impl(layer, layer.router_impl))
            for layer in manifest.layers
        )
        kernels = KernelUse(None, "the engine was built without plugins", None)
        if (plugin := manifest.plugin) is not None:
            # A library that is embedded has no file: it is inside the engine.
            kernels = KernelUse(
                self.engine.root / (plugin.file or engine_dir.ENGINE_NAME), None, None
            )
        attention = {run.path: run.runs_as for run in runs}
        routers = {f"{run.path} (router)": run.router_runs_as for run in runs}
        return Description(
            f"{title} {manifest.versions.get(title, 'of unknown version')}",
            kernels,
            {name: impl for name, impl in {**attention, **routers}.items() if impl is not None},
            runs,
            device=manifest.versions.get("GPU", "a GPU"),
        )

    def close(self) -> None:
        self.engine.close()


_PACKAGE_IS_GONE = (
    "Its caches were put in place when it was built, in a package that is gone. Export the model"
    " with --cache in-place, and build the engine from that package."
)


def _impl(layer: engine_dir.EngineLayer, implementation: str) -> LayerImpl | None:
    if implementation == "operators":
        return None
    if implementation == "kernel":
        return "kernel"
    return "dense" if layer.choice == "dense" else "function"
