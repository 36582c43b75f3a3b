"""The differences between TensorRT and TensorRT-RTX; everything else is one path."""

import ctypes
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.system.bounded_file import sha256_of


@dataclass(frozen=True)
class Flavour:
    """TensorRT or TensorRT-RTX: how it is called, found, and told what to build for."""

    name: str  # as `--backend` takes it
    title: str  # as people call it
    module: str  # python's name
    oldest: tuple[int, int]  # the least version that is taken
    # Compute capabilities that can be named, with those that are meant where none is; empty: it
    # builds for the GPU that it finds.
    targets: Mapping[str, bool]
    has_timing_cache: bool  # whether it measures when it builds; else it compiles when it runs
    # Package whose library's unversioned name is missing, and that name; the parser looks for it
    # when it meets a plugin, and the process aborts without it.
    libraries: tuple[str, str] | None
    install: str  # how to get it

    def require_installed(self) -> None:
        """Raise a BackendError if Python does not find it."""
        if importlib.util.find_spec(self.module) is None:
            raise BackendError(
                f"{self.title} is not installed: there is no Python package '{self.module}'.",
                hint=self.install,
            )

    def check_version(self, version: str) -> None:
        """Raise a BackendError if a version is too old."""
        # Compared as numbers: as text, 10.12 would be older than 10.7. A patch level is never
        # required.
        if tuple(map(int, version.split(".")[:2])) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            raise BackendError(
                f"{self.title} is of version {version}, expected {oldest} or later.",
                hint=self.install,
            )

    def targets_of(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return the compute capabilities to build for; nothing where the GPU decides.

        Args:
            asked: `8.6` and the like, as the user named them.

        Raises:
            ConfigError: It has no such target, or takes none.
        """
        if asked and not self.targets:
            raise ConfigError(
                f"compute_capability is {', '.join(asked)}, but {self.title} builds for the GPU of"
                " the machine that it runs on.",
                hint="Leave the option out, or build with --backend tensorrt-rtx.",
            )
        for name in asked:
            if name not in self.targets:
                raise ConfigError(
                    f"compute_capability is '{name}', {self.title} has {', '.join(self.targets)}.",
                    hint=None if self.name == "tensorrt" else _FOR_OTHER_GPUS,
                )
        usual = tuple(target for target, is_usual in self.targets.items() if is_usual)
        # Named twice, a GPU is built for once.
        return tuple(dict.fromkeys(asked)) or usual

    def library_to_name(self) -> tuple[Path, str] | None:
        """Return the library that the parser looks for by another name, and that name."""
        spec = importlib.util.find_spec(self.libraries[0]) if self.libraries else None
        if self.libraries is None or spec is None or spec.origin is None:
            return None
        name = self.libraries[1]
        # The wheel may hold versioned names only, such as `libtensorrt_rtx.so.1`.
        versioned = sorted(Path(spec.origin).parent.glob(f"{name}.*"))
        missing = versioned and not (Path(spec.origin).parent / name).exists()
        return (versioned[0], name) if missing else None


_FOR_OTHER_GPUS = "GPUs of servers (8.0 apart) are for --backend tensorrt, on such a machine."

FLAVOURS: Mapping[str, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        title="TensorRT",
        module="tensorrt",
        oldest=(10, 7),
        targets={},
        has_timing_cache=True,
        libraries=None,
        install="pip install tensorrt, on a machine with an NVIDIA GPU; or work in one of"
        " NVIDIA's TensorRT containers.",
    ),
    "tensorrt-rtx": Flavour(
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        oldest=(1, 1),
        targets={"7.5": False, "8.0": True, "8.6": True, "8.9": True, "12.0": True, "12.1": False},
        has_timing_cache=False,
        libraries=("tensorrt_rtx_libs", "libtensorrt_rtx.so"),
        install="pip install tensorrt-rtx-cu13, or 'moh-deploy[tensorrt-rtx]'.",
    ),
}


# Find libmoh_plugin.so, the kernels for TensorRT, and check that it is of this version.

PLUGIN_NAME = "libmoh_plugin.so"
# Registers the plugins of the library beside it, in programs that only `dlopen` libraries.
REGISTERED_NAME = "libmoh_plugin_registered.so"
HOW_TO_BUILD = (
    "Build it with `make plugin` (nvcc and TensorRT's headers are needed, no GPU), or name it with"
    " --plugin FILE."
)


@dataclass(frozen=True)
class PluginLibrary:
    """A library of this version of moh-deploy."""

    path: Path
    sha256: str
    cuda: int  # major version of CUDA that a driver has to take


def find_plugin(given: Path | None) -> PluginLibrary | None:
    """Return the library that is named, else the installed one, else None.

    Raises:
        BackendError: There is no such file, or it is not a library of this version.
    """
    path = given or native.FOLDER / PLUGIN_NAME
    # Nothing installed is no error: layers then run their functions. What was named has to be
    # there.
    if given is None and not os.path.isfile(path):
        return None
    if not os.path.isfile(path):
        raise BackendError(f"plugin is {path}: there is no such file.", hint=HOW_TO_BUILD)
    try:
        # Resolved: without a slash the linker would search its own paths for the name.
        library = ctypes.CDLL(str(path.resolve()))
        function, cuda = library.moh_plugin_version, library.moh_plugin_cuda
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"{path} is not a plugin library of moh-deploy: {error}.", hint=HOW_TO_BUILD
        ) from error
    function.restype = ctypes.c_char_p
    found = function().decode()
    if found != __version__:
        raise BackendError(
            f"{path} belongs to moh-deploy {found}, this is {__version__}.", hint=HOW_TO_BUILD
        )
    return PluginLibrary(path.resolve(), sha256_of(path), int(cuda()))
