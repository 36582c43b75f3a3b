"""The directory that a build writes: the engine, and `engine.json`, which says what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from moh_deploy import package
from moh_deploy.config.dims import DimExpr
from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package.cache_buffers import BUFFER
from moh_deploy.package.manifest_json import cache_problems
from moh_deploy.runtime.tensorrt.flavour import PLUGIN_NAME, REGISTERED_NAME
from moh_deploy.runtime.tensorrt.messages import BuilderOptions
from moh_deploy.runtime.tensorrt.profiles import LARGEST, Profile, covers
from moh_deploy.system.bounded_file import is_plain_name, sha256_of
from moh_deploy.system.bounded_json import has_keys, read_json
from moh_deploy.system.sealed_directory import SealedDirectory

ENGINE_NAME = "model.engine"
ENGINE_MANIFEST_NAME = "engine.json"
ENGINE_LOG_NAME = "build.log"
LOADER_NAME = "load.py"
# All that a build may leave: a directory with anything else in it is not replaced.
ENGINE_FILES: tuple[str, ...] = (
    *(ENGINE_NAME, ENGINE_MANIFEST_NAME, ENGINE_LOG_NAME, LOADER_NAME),
    *(PLUGIN_NAME, REGISTERED_NAME),
    *(package.MODEL_NAME, package.MODEL_DATA_NAME),
)
ENGINE_FORMAT_VERSION = 1

Implementation = Literal["kernel", "fused", "function", "operators"]
"""A plugin; TensorRT's own attention, times the gates; the body of the op in ordinary operators;
operators as the model wrote them."""


@dataclass(frozen=True)
class EngineLayer(Strict):
    """Says what runs one MoH layer, read from the network that was built."""

    path: str
    moh_impl: Implementation  # what runs its attention
    router_impl: Implementation  # what makes its gates
    choice: package.Choice | None  # how it was to be run; None: as operators, it was not replaced
    reason: str | None  # why not by a kernel; None if it is
    # The dtypes of the router's stages, in lower precision.
    router_types: package.RouterTypes | None = None
    # Who decided what runs its attention, and by what; None where nothing could.
    decision: str | None = None
    # What was timed to decide it, to milliseconds at the usual sizes of each profile; empty: not
    # measured.
    times_ms: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class PluginInfo(Strict):
    """The plugin library of an engine; it has no file if it is inside of the engine."""

    file: str | None
    sha256: str


@dataclass(frozen=True)
class EngineManifest(Strict):
    """The content of `engine.json`: what an engine is, and what it was made from.

    What was asked for of the build is as in `build_plan.BuildPlan`.
    """

    backend: str  # `tensorrt` or `tensorrt-rtx`
    key: str  # digest of all that the engine was made from: an equal one makes the same engine
    package_sha256: str  # digest of the package's manifest, which has those of all other files
    precision: str
    # Of moh-deploy and of TensorRT; GPU and driver where the engine is for this one.
    versions: dict[str, str]
    compute_capabilities: tuple[str, ...]
    # Name of each dynamic dimension to its sizes, one entry a profile.
    profiles: tuple[Profile, ...]
    # Of the engine, in the package's order, as `outputs` are.
    inputs: tuple[package.TensorInfo, ...]
    outputs: tuple[package.TensorInfo, ...]
    layers: tuple[EngineLayer, ...]
    # The library that has to be loaded before the engine; None: it needs none.
    plugin: PluginInfo | None
    workspace_bytes: int | None
    build_seconds: float
    # File name to sha256, for each file but this one and the log.
    files: dict[str, str] = field(default_factory=dict)
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    # Those that it writes in place; None: it has no caches, or they were not recorded.
    caches: package.CachesInPlace | None = None
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    format_version: int = ENGINE_FORMAT_VERSION

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether a profile has these sizes of the dynamic dimensions."""
        return not self.profiles or any(covers(profile, sizes) for profile in self.profiles)


def engine_manifest_text(manifest: EngineManifest) -> str:
    """Encode a manifest as the text of `engine.json`."""
    return json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def read_whole(root: Path) -> EngineManifest | None:
    """Return the manifest of an engine directory that is as it was written; None of any other."""
    try:
        manifest = parse_engine_manifest(root / ENGINE_MANIFEST_NAME)
        whole = all(sha256_of(root / name) == sha for name, sha in manifest.files.items())
    except (OSError, PackageError):
        return None
    known = manifest.format_version == ENGINE_FORMAT_VERSION
    return manifest if whole and known else None


def parse_engine_manifest(path: Path) -> EngineManifest:
    """Decode the manifest of an engine directory, of whatever format version.

    Raises:
        PackageError: It is not a manifest, or names a file that is not in the directory.
        FileNotFoundError: It is missing.
    """
    content = read_json(path, error=PackageError)
    try:
        manifest = TypeAdapter(EngineManifest).validate_json(json.dumps(content))
    except ValidationError as error:
        raise PackageError(f"{path} cannot be read: {error}.") from error
    # Sizes and names are checked before they are used: the file may come from anywhere.
    sizes = [size for info in manifest.inputs for size in info.shape if isinstance(size, str)]
    try:
        dims = {DimExpr.parse(size, place=f"{path}: inputs").name for size in sizes}
    except ConfigError as error:
        raise PackageError(error.message) from error
    for index, profile in enumerate(manifest.profiles):
        for name, span in profile.items():
            if name not in dims or not 0 <= span.min <= span.opt <= span.max <= LARGEST:
                known = ", ".join(sorted(dims)) or "no dimension"
                raise PackageError(
                    f"{path}: key 'profiles[{index}].{name[:100]}': is {span}, expected sizes of"
                    f" {known}, in rising order."
                )
    if (caches := manifest.caches) is not None:
        for key, problem in cache_problems(caches, manifest.inputs, manifest.outputs, dims):
            raise PackageError(f"{path}: key '{key}': {problem}.")
        if BUFFER not in dims:
            raise PackageError(f"{path}: key 'caches': no input has the dimension '{BUFFER}'.")
    plugin = None if manifest.plugin is None else manifest.plugin.file
    # A name with a slash could make another file be read, or loaded as a library.
    for name in (*manifest.files, *([] if plugin is None else [plugin])):
        if not is_plain_name(name):
            raise PackageError(f"{path}: files names '{name}', expected a plain file name.")
    return manifest


def looks_like_engine(path: Path) -> bool:
    """Tell whether a file is the manifest of an engine directory, of whatever format version."""
    # What every format version has; other tools write `engine.json` files too.
    return has_keys(path, {"format_version", "backend", "key"})


# Read an engine directory, and refuse one that is not as it was written.

_BUILD_AGAIN = "Build it again: moh-deploy build PACKAGE --backend ... --output ENGINE_DIR."


def is_engine_dir(root: Path | str) -> bool:
    """Tell whether `moh-deploy build` wrote a directory, even if it was changed since."""
    return looks_like_engine(Path(root) / ENGINE_MANIFEST_NAME)


def read_engine_dir(root: Path) -> EngineManifest:
    """Return the manifest of an engine directory.

    Raises:
        PackageError: It is not an engine, of another format version, or a file was changed.
    """
    path = root / ENGINE_MANIFEST_NAME
    # A directory that is still being written may look whole.
    package.require_finished(root)
    if not is_engine_dir(root):
        raise PackageError(
            f"{root} is not an engine directory: it has no {ENGINE_MANIFEST_NAME} of a build.",
            hint="Make one with `moh-deploy build PACKAGE --backend ... --output ENGINE_DIR`.",
        )
    try:
        manifest = parse_engine_manifest(path)
    except PackageError as error:
        raise PackageError(error.message, hint=_BUILD_AGAIN) from error
    if manifest.format_version != ENGINE_FORMAT_VERSION:
        raise PackageError(
            f"{path} is of format version {manifest.format_version}, expected"
            f" {ENGINE_FORMAT_VERSION}.",
            hint=_BUILD_AGAIN,
        )
    # A damaged engine could crash the process that loads it, or compute something else.
    sealed = SealedDirectory(root, ENGINE_MANIFEST_NAME, "the engine was built")
    for name, sha256 in manifest.files.items():
        sealed.check(name, sha256, hint=_BUILD_AGAIN)
    return manifest
