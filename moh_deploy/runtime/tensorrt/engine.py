"""An engine that `moh-deploy build` wrote, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.input_check import check_inputs, check_room
from moh_deploy.runtime.tensorrt.engine_dir import EngineManifest
from moh_deploy.runtime.tensorrt.engine_reading import read_engine_dir
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.loading import LoadedEngine, load_engine, on_first_gpu
from moh_deploy.runtime.tensorrt.on_gpu import GpuContext, is_torch, stand_in
from moh_deploy.runtime.tensorrt.on_host import HostContext
from moh_deploy.runtime.tensorrt.profiles import covers, profile_text
from moh_deploy.system.npz import Array


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
        PackageError: It is none, or a file has changed since it was built.
        BackendError: It cannot run here: no GPU, another TensorRT or GPU than it was built for.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.manifest: EngineManifest = read_engine_dir(self.root)
        with on_first_gpu():
            self._loaded: LoadedEngine | None = load_engine(self.root, self.manifest)
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
