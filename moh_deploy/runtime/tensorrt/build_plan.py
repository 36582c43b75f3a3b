"""The plan of a build: what was asked for, checked before anything is started."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from packaging import version

from moh_deploy import __version__
from moh_deploy.config.dtypes import FEW_BITS, dtype_named
from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.graph.precision_policy import LowType
from moh_deploy.package import OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.runtime.tensorrt.flavour import (
    FLAVOURS,
    HOW_TO_BUILD,
    PLUGIN_NAME,
    REGISTERED_NAME,
    Flavour,
    PluginLibrary,
)
from moh_deploy.runtime.tensorrt.messages import BuilderOptions, Stack
from moh_deploy.runtime.tensorrt.profiles import Profile, profile_text
from moh_deploy.system.bounded_file import open_regular, sha256_of, sha256_of_json
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.nvidia_driver import read_driver
from moh_deploy.system.staging import staged_file
from moh_deploy.system.suggest import did_you_mean

HARDWARE = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}
"""What `--hardware-compatibility` takes, to TensorRT's names."""

_CACHE_LAYER = "10.15"
"""The first TensorRT with IKVCacheUpdateLayer, which its parser makes of TensorScatter."""
_SAME_CAPABILITY = "10.9"
"""The first TensorRT with SAME_COMPUTE_CAPABILITY among its levels of compatibility."""

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class BuildPlan:
    """All that decides what one build makes."""

    flavour: Flavour
    package: OnnxPackage
    low: LowType | None  # what the package is lowered to first; None: it stays as it is
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]  # compute capabilities; none: of this machine's GPU
    workspace_bytes: int | None  # the most scratch memory of a layer; None: no limit
    timing_cache: Path | None
    library: PluginLibrary | None  # the plugin library, or None
    embed_plugin: bool  # put it into the engine
    keep_onnx: bool
    plain: bool = False
    only_kernels: bool = False  # what the plugins take is to run by them
    version_compatible: bool = False  # later versions of TensorRT may run the engine
    # Other GPUs that may, as TensorRT names them; None: no others.
    hardware_compatibility: str | None = None
    builder: BuilderOptions = field(default_factory=BuilderOptions)

    @property
    def no_plugins(self) -> str | None:
        """Why there are no plugins, in half a sentence; None: there are."""
        if self.plain:
            return "a plain engine was asked for"
        return "there is no plugin library" if self.library is None else None

    @property
    def registered(self) -> Path | None:
        """The library that registers the plugins when it is loaded, if it is beside them."""
        if self.library is None or self.embed_plugin:
            return None
        path = self.library.path.with_name(REGISTERED_NAME)
        return path if path.is_file() else None

    @property
    def precision(self) -> str:
        """`float32`, `float16` or `bfloat16`: of the engine."""
        return self.low or self.package.manifest.precision

    @property
    def package_sha256(self) -> str:
        """Digest of the package's manifest, which has those of all other files."""
        return sha256_of(self.package.root / MANIFEST_NAME)

    def require_library(self, *, why: str) -> None:
        """Raise a BackendError if there is no plugin library."""
        if self.library is None:
            raise BackendError(
                f"{why}, but there is no plugin library {PLUGIN_NAME}.", hint=HOW_TO_BUILD
            )

    def require_gpu(self, found: Stack) -> None:
        """Raise a BackendError if it builds for this machine's GPU, and that is missing."""
        # TensorRT-RTX is given compute capabilities, and needs no GPU to build for them.
        if not self.flavour.targets and found.gpu is None:
            raise BackendError(
                f"{self.flavour.title} builds for the GPU of the machine that it runs on, and finds"
                " none here.",
                hint="Build where the engine is to run; or with --backend tensorrt-rtx, which needs"
                " no GPU to build.",
            )

    def require_cache_layer(self, found: Stack) -> None:
        """Raise a BackendError if caches are written in place, and TensorRT has no layer for it."""
        if self.package.manifest.caches is None or self.flavour.name != "tensorrt":
            return
        self._require(
            found,
            _CACHE_LAYER,
            f"the package writes its caches in place, for which {self.flavour.title}"
            f" {found.version} has no layer",
            "Build with caches that grow",
        )

    def require_hardware_level(self, found: Stack) -> None:
        """Raise a BackendError if TensorRT does not have the level of compatibility yet."""
        if self.hardware_compatibility == "SAME_COMPUTE_CAPABILITY":
            self._require(
                found,
                _SAME_CAPABILITY,
                f"{self.flavour.title} {found.version} builds no engine for other GPUs of the same"
                " compute capability",
                "Leave --hardware-compatibility out",
            )

    def _require(self, found: Stack, least: str, why: str, hint: str) -> None:
        if version.parse(found.version) < version.parse(least):
            raise BackendError(
                f"{why}; expected {least} or later.", hint=f"{hint}, or install a newer TensorRT."
            )

    @property
    def is_portable(self) -> bool:
        """Tell whether the engine may run on GPUs of other architectures than this one's."""
        return self.hardware_compatibility == "AMPERE_PLUS"

    def stack(self, found: Stack) -> dict[str, str | None]:
        """Return versions, library and GPU, on which an engine and measured times depend."""
        return {
            self.flavour.title: found.version,
            "plugin library": None if self.library is None else self.library.sha256,
            **found.machine(),
        }

    def key(self, found: Stack) -> str:
        """Return the digest of all that decides what is built."""
        return sha256_of_json(
            {
                # Whatever changes the engine has to be here: an equal key means that nothing is
                # built.
                "moh-deploy": __version__,
                "package": self.package_sha256,
                "backend": self.flavour.name,
                "stack": self.stack(found),
                "precision": self.precision,
                "profiles": [profile_text(profile) for profile in self.profiles],
                "compute capabilities": self.targets,
                "workspace": self.workspace_bytes,
                "embedded": self.embed_plugin,
                "with its model": self.keep_onnx,
                "kernels": "none" if self.plain else "all" if self.only_kernels else "fastest",
                "version compatible": self.version_compatible,
                "hardware compatible": self.hardware_compatibility,
                "builder": asdict(self.builder),
                "registering library": self.registered is not None,
            }
        )


def flavour_of(backend: str) -> Flavour:
    """Return TensorRT or TensorRT-RTX by its name."""
    if backend not in FLAVOURS:
        raise ConfigError(
            f"backend is '{backend}', expected {' or '.join(FLAVOURS)}.",
            hint=did_you_mean(backend, FLAVOURS) or None,
        )
    return FLAVOURS[backend]


def lowered_type(precision: str | None, package: OnnxPackage) -> LowType | None:
    """Return the dtype that the package has to be lowered to; None if it need not be."""
    found = package.manifest.precision
    if found in FEW_BITS:
        raise ConfigError(
            f"{package.root} is in {found}, which is for ONNX Runtime on a CPU.",
            hint="Build from the float32 package that it was made of.",
        )
    if precision is None:
        return None
    wanted = dtype_named(precision, ("float32", *get_args(LowType)), option="precision")
    if wanted == found:
        return None
    # What was rounded away does not come back, and float16 does not become bfloat16.
    if found != "float32" or wanted == "float32":
        raise ConfigError(
            f"precision is {precision}, but {package.root} is in {found}: only a float32 package"
            " can be lowered.",
            hint="Export the model with --dtype float32 and build from that package.",
        )
    return cast("LowType", wanted)


def hardware_level(asked: str | None, flavour: Flavour) -> str | None:
    """Return TensorRT's name of the GPUs besides this one that an engine is to run on."""
    if asked is None:
        return None
    if asked not in HARDWARE:
        raise ConfigError(
            f"hardware_compatibility is '{asked}', expected {' or '.join(HARDWARE)}.",
            hint=did_you_mean(asked, HARDWARE) or None,
        )
    require_compatibility(flavour, f"hardware_compatibility is {asked}")
    return HARDWARE[asked]


def require_compatibility(flavour: Flavour, asked: str) -> None:
    """Raise a ConfigError if engines run on what they were built for, and nothing else."""
    if flavour.targets:
        raise ConfigError(
            f"{asked}, but {flavour.title} has no such engines: they run with the version that"
            " built them, on the GPUs that are named.",
            hint="Leave the option out, and name the GPUs: --compute-capability 8.6 8.9.",
        )


def timing_cache_path(path: Path | str | None, flavour: Flavour) -> Path | None:
    """Return the file of measured times, checked; None: they are kept nowhere."""
    if path is not None and not flavour.has_timing_cache:
        raise ConfigError(
            f"timing_cache is {path}, but {flavour.title} measures nothing when it builds: it"
            " compiles for the GPU when it runs.",
            hint="Leave the option out.",
        )
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise ConfigError(f"timing_cache is {path}: there is no such folder.")
    return None if path is None else Path(path)


def builder_options(asked: BuilderOptions, flavour: Flavour) -> BuilderOptions:
    """Return the options, checked.

    Raises:
        ConfigError: There is no level of optimization of that number.
        BackendError: They need a GPU, and it is missing.
    """
    if asked.optimization_level not in (None, *range(6)):
        raise ConfigError(
            f"builder_optimization_level is {asked.optimization_level}, expected 0 to 5."
        )
    # All else TensorRT-RTX compiles without one; here its builder fails, with an internal error.
    if flavour.targets and (asked.refit or asked.strip_weights):
        option = "--refit" if asked.refit else "--strip-weights"
        try:
            read_driver()
        except BackendError as error:
            raise BackendError(
                f"{flavour.title} needs a GPU to build with {option}: {error.message}.",
                hint="Leave the option out, or build on a machine with an NVIDIA GPU.",
            ) from error
    return asked


def bytes_of(text: str) -> int:
    """Read a number of bytes such as `4GiB` or `500MB`."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"workspace is '{text}', expected a whole number with {', '.join(filter(None, _UNITS))}"
            " or no unit: 4GiB."
        )
    return int(match[1]) * _UNITS[match[2]]


# Read and write the file of `--timing-cache`: what TensorRT measured on one machine and stack.
#
# A line of JSON says which; TensorRT's own bytes follow.

_KIND = "moh-deploy timing cache"


@dataclass(frozen=True)
class TimingCache:
    """A file of measured times."""

    path: Path  # the file; it may not exist yet
    # What the times have to be of: versions, GPU, driver, plugin library.
    stack: dict[str, str | None]

    def read(self) -> bytes | None:
        """Return the times; None if the file holds none, or those of something else."""
        if self.why_ignored() is not None or not self.path.is_file():
            return None
        with open_regular(self.path) as file:
            return file.read().partition(b"\n")[2]

    def why_ignored(self) -> str | None:
        """Return why what is there is neither used nor replaced; None if it is."""
        if not self.path.exists():
            return None
        # A foreign file is never overwritten, and times of another GPU would choose
        # tactics that are slow here.
        try:
            with open_regular(self.path) as file:
                text = file.read().partition(b"\n")[0]
            head = cast("dict[str, Any]", parse_json(text, f"{self.path}", error=PackageError))
            found = dict(head["stack"]) if head["kind"] == _KIND else None
        # Whatever the file holds may be anything: none of it may end a build.
        except (OSError, PackageError, ValueError, KeyError, TypeError):
            found = None
        if found is None:
            return "it is not a timing cache of moh-deploy"
        differences = [
            f"{key} {found.get(key)}, here {value}"
            for key, value in self.stack.items()
            if found.get(key) != value
        ]
        return f"it was measured with {'; '.join(differences)}" if differences else None

    def write(self, times: bytes) -> None:
        """Replace the file by one with these times.

        Raises:
            PackageError: The file cannot be written.
        """
        head = json.dumps({"kind": _KIND, "stack": self.stack}).encode()
        with staged_file(self.path) as file:
            file.write_bytes(head + b"\n" + times)
