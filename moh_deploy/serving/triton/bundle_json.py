"""The contents of a bundle's `bundle.json`: what the directory holds and was made with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any, Literal

from pydantic import TypeAdapter

from moh_deploy import __version__
from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import PackageError
from moh_deploy.package import TensorInfo
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_MANIFEST_NAME
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.bounded_file import sha256_of, sha256_of_json
from moh_deploy.system.bounded_json import has_keys, read_json


def open_bundle(root: Path, *, instances: int | None = None) -> ServedModel:
    """Open the model of a bundle with the bundle's settings.

    Args:
        instances: How many of it share the machine's cores; None for the bundle's own number.

    Raises:
        PackageError: It is no bundle, has changed since it was written, or is of another version.
        BackendError: The runtime is not there, or refuses the model.
        ValidationError: It answers a recorded run wrongly.
    """
    path, settings = bundled_model(root)
    if instances is not None:
        settings = replace(settings, instances=instances)
    return open_served(find_deployed(path), settings)


def bundled_model(root: Path) -> tuple[Path, ServingSettings]:
    """Return the package or engine in a bundle, and its settings with paths that lead there.

    Raises:
        PackageError: It is no bundle, has changed since it was written, or is of another version.
    """
    bundle = read_bundle(root)
    made_by = bundle.versions["moh-deploy"]
    if made_by != __version__:
        raise PackageError(
            f"{root} was written by moh-deploy {made_by}, this is {__version__}.",
            hint="Write the bundle again, or install that version.",
        )
    require_unchanged(root, bundle)
    found = {name: getattr(bundle.settings, name) for name in PATHS}
    placed: Any = {name: str(root / path) for name, path in found.items() if path is not None}
    return root / bundle.served, replace(bundle.settings, **placed)


BUNDLE_NAME = "bundle.json"
BUNDLE_FORMAT_VERSION = 1
REPOSITORY = "repository"
LIBRARIES = "lib"
WARMUP, CONFIG_NAME = "warmup", "config.pbtxt"  # Triton's own names
SERVED = "package"
# Settings that are paths in the bundle.
PATHS = ("policy", "audit_log", "control", "shadow", "reference", "library")
_DIGEST = "sha256"

# The backend of the server that runs a model: Python with moh-deploy, or TensorRT.
Backend = Literal["python", "tensorrt"]


@dataclass(frozen=True)
class LibraryInfo(Strict):
    """A native library of the bundle, and what it needs."""

    file: str  # path in the bundle
    # The oldest GNU C library that it runs with: `2.36`; None where that is not known.
    glibc: str | None
    machine: str  # the processor that it is for: `x86_64`
    # Those that it could use where the bundle was written, best first.
    instruction_sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle(Strict):
    """The content of `bundle.json`."""

    backend: Backend  # the backend of the server that runs the model
    settings: ServingSettings  # how it is served; paths in it are relative to the bundle
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    versions: dict[str, str]  # of what it was made with: moh-deploy, the runtime, Python
    # Digest of the manifest of the package or engine, which has those of its files.
    package_sha256: str
    max_batch: int  # the most samples in one batch; 0: requests cannot be joined
    library: LibraryInfo | None = None  # the kernels; None: function bodies run
    # Path in the bundle to sha256, for each file but this one.
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = BUNDLE_FORMAT_VERSION
    # The engine holds its plugins, as code that the server has to allow.
    embeds_plugins: bool = False

    @property
    def model(self) -> PurePosixPath:
        """The directory of the model in the repository."""
        return PurePosixPath(REPOSITORY, self.settings.name)

    @property
    def config(self) -> PurePosixPath:
        """Return the path of `config.pbtxt`."""
        return self.model / CONFIG_NAME

    @property
    def version(self) -> PurePosixPath:
        """The directory of its one version."""
        return self.model / self.settings.version

    @property
    def served(self) -> PurePosixPath:
        """The directory of the package or engine."""
        return self.version / SERVED

    def backend_config(self, place: str) -> str | None:
        """Return the option that the server needs for a bundle at a place; None: it needs none."""
        if self.embeds_plugins:
            return "--backend-config=tensorrt,version-compatible=true"
        if self.backend == "python" or self.library is None:
            return None
        return f"--backend-config=tensorrt,plugins={place}/{self.library.file}"


def is_bundle(root: Path) -> bool:
    """Tell whether `moh-deploy bundle` wrote a directory, changed or not."""
    return looks_like_bundle(root / BUNDLE_NAME)


def looks_like_bundle(path: Path) -> bool:
    """Tell whether a file is the `bundle.json` of a bundle, of whatever format version."""
    return has_keys(path, {"format_version", "backend", "package_sha256"})


def read_bundle(root: Path) -> Bundle:
    """Decode `bundle.json`; no other file is looked at.

    Raises:
        PackageError: It is missing, not as it was written, or of another format version.
    """
    path = root / BUNDLE_NAME
    hint = "Write a bundle: moh-deploy bundle PACKAGE -o DIR."
    try:
        content = read_json(path, error=PackageError)
    except FileNotFoundError:
        raise PackageError(f"{root} is no bundle: it has no {BUNDLE_NAME}.", hint=hint) from None
    except OSError as problem:
        raise PackageError(f"{path} cannot be read: {problem.strerror}.") from problem
    if not isinstance(content, dict) or content.get("format_version") != BUNDLE_FORMAT_VERSION:
        found = content.get("format_version") if isinstance(content, dict) else None
        raise PackageError(
            f"{path}: format_version is {found!r:.60}, expected {BUNDLE_FORMAT_VERSION}.", hint=hint
        )
    written = content.pop(_DIGEST, None)
    if written != sha256_of_json(content):
        raise PackageError(
            f"{path} has changed since it was written: sha256 in it is {written!r:.80}, of its"
            f" content {sha256_of_json(content)}.",
            hint=hint,
        )
    if content.get("backend") == "onnxruntime":
        raise PackageError(
            f"{root} is for Triton's ONNX Runtime backend, which moh-deploy no longer serves.",
            hint="Bundle the package again: moh-deploy bundle PACKAGE -o DIR --backend python.",
        )
    bundle = decode_strict(Bundle, content, str(path), error=PackageError)
    library = None if bundle.library is None else bundle.library.file
    beside = (getattr(bundle.settings, name) for name in PATHS)
    for place in (*bundle.files, *filter(None, (library, *beside)), bundle.version.as_posix()):
        # A path that leads out could make another file be read, written, or loaded as a library.
        parts = PurePosixPath(place).parts
        if not parts or {"..", "/", "//"} & set(parts) or {"\0", "\\"} & set(place):
            raise PackageError(f"{path}: names '{place[:100]}', expected a path in the bundle.")
    return bundle


CHANGED = "has changed since it was written"
COPY_AGAIN = "Copy the bundle again, or write it again: moh-deploy bundle."


def file_problem(root: Path, bundle: Bundle, name: str) -> str | None:
    """Return what is wrong with a file of a bundle; None if it is as it was written."""
    try:
        return None if sha256_of(root / name) == bundle.files.get(name) else CHANGED
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def require_unchanged(root: Path, bundle: Bundle) -> None:
    """Refuse a bundle whose kernels, or a manifest in it, are not those that were written.

    A manifest has the digests of its package's other files: opening the package compares them.

    Raises:
        PackageError: A file is another one.
    """
    manifests = {MANIFEST_NAME, ENGINE_MANIFEST_NAME}
    named = [name for name in bundle.files if PurePosixPath(name).name in manifests]
    libraries = bundle.settings.library, None if bundle.library is None else bundle.library.file
    for name in (*filter(None, dict.fromkeys(libraries)), *named):
        if (problem := file_problem(root, bundle, name)) is not None:
            raise PackageError(f"{root / name} {problem}.", hint=COPY_AGAIN)


def bundle_text(bundle: Bundle) -> str:
    """Encode a bundle; `read_bundle` gives an equal one back."""
    content = json.loads(TypeAdapter(Bundle).dump_json(bundle))
    return json.dumps({**content, _DIGEST: sha256_of_json(content)}, indent=2) + "\n"


NEVER_RUN = "no server has run a bundle of this backend yet: try it before you rely on it"


@dataclass(frozen=True)
class BundleReport(Report):
    """A bundle that was written, and how a server is started with it."""

    root: Path
    bundle: Bundle
    start: str  # the command that serves it, in a container where `tritonserver` is on PATH

    @classmethod
    def of(cls, root: Path, bundle: Bundle) -> BundleReport:
        """Return the report of a bundle."""
        option = bundle.backend_config(".")
        if option is None:
            start = f"tritonserver --model-repository={quote(str(root / REPOSITORY))}"
        else:
            # The server takes the path of a library from its working directory.
            start = f"tritonserver --model-repository={REPOSITORY} {option}"
            start = f"cd {quote(str(root))} && {start}"
        return cls(root, bundle, start)

    def document(self) -> Document:
        """Return what it says."""
        bundle, settings = self.bundle, self.bundle.settings
        library = bundle.library
        needs = "in the engine" if bundle.embeds_plugins else "none: function bodies run"
        if library is not None:
            glibc = f", GNU C library {library.glibc} or newer" if library.glibc else ""
            needs = f"{library.file}: {library.machine}{glibc}"
        threads = "the machine's cores shared" if settings.threads is None else settings.threads
        batches = f"up to {bundle.max_batch} samples, joined for {settings.max_delay_ms:g} ms"
        tensors = (*bundle.inputs, *bundle.outputs)
        # Triton has no tensors without axes, beside the batch axis.
        flat = [info.name for info in tensors if len(info.shape) == int(bundle.max_batch > 0)]
        shape = "[batch, 1]" if bundle.max_batch else "[1]"
        rows = [
            ("model", f"{settings.name}, version {settings.version}"),
            ("backend", bundle.backend),
            *([("", NEVER_RUN)] if bundle.backend == "tensorrt" else []),
            ("instances", f"{settings.instances}, threads: {threads}"),
            ("batches", batches if bundle.max_batch else "none: requests cannot be joined"),
            *([("shapes in Triton", f"{', '.join(flat)}: {shape}")] if flat else []),
            ("kernels", needs),
            ("files", str(len(bundle.files) + 1)),
        ]
        check = f"moh-deploy bundle --check {quote(str(self.root))}"
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}"),
                Table("what Triton will serve", ("what", ""), rows),
                Text(f"start it: {self.start}", is_whole=True),
                Text(f"see if it starts here: {check}", is_whole=True),
            ),
        )
