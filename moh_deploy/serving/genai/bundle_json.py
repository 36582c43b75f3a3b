"""The `bundle.json` of a bundle for genai: what the directory holds and was made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_json import has_keys, read_json
from moh_deploy.system.digest import sha256_of

GENAI_BUNDLE_NAME = "bundle.json"
GENAI_BUNDLE_VERSION = 1
PACKAGE_FOLDER = "package"
_WRITE_ONE = "Write it again: moh-deploy bundle PACKAGE --target genai -o DIR."


@dataclass(frozen=True)
class GenaiBundle(Strict):
    """`bundle.json`.

    Attributes:
        package_sha256: Digest of the package's manifest, which has those of its files.
        library: File name of the kernels; None: it has none, and function bodies run.
        shares_buffer: Whether caches are buffers that are written in place.
        versions: Of what it was made with: moh-deploy, ONNX Runtime, Python.
        files: Path in the bundle to sha256, for each file but this one.
        target: What opens it.
        format_version: Of the directory.
    """

    package_sha256: str
    library: str | None
    shares_buffer: bool
    versions: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    target: Literal["genai"] = "genai"
    format_version: int = GENAI_BUNDLE_VERSION


def is_genai_bundle(root: Path) -> bool:
    """Tell whether `moh-deploy bundle --target genai` wrote a directory, changed or not."""
    return has_keys(root / GENAI_BUNDLE_NAME, {"format_version", "target", "shares_buffer"})


def read_genai_bundle(root: Path) -> GenaiBundle:
    """Read a bundle, and check that each of its files is as it was written.

    Raises:
        PackageError: It is no bundle, of another format version, or changed.
    """
    path = root / GENAI_BUNDLE_NAME
    try:
        content = read_json(path, error=PackageError)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.", hint=_WRITE_ONE) from error
    bundle = decode_strict(GenaiBundle, content, f"{path}", error=PackageError, hint=_WRITE_ONE)
    if bundle.format_version != GENAI_BUNDLE_VERSION:
        raise PackageError(
            f"{path}: format_version is {bundle.format_version}, expected {GENAI_BUNDLE_VERSION}.",
            hint=_WRITE_ONE,
        )
    for name, digest in bundle.files.items():
        place = PurePosixPath(name)
        # A path that leads out could make another file be read.
        if place.is_absolute() or ".." in place.parts:
            raise PackageError(f"{path}: names '{name[:100]}', expected a path in it.")
        try:
            found = sha256_of(root / name)
        except OSError as error:
            raise PackageError(
                f"{root / name} cannot be read: {error.strerror}.", hint=_WRITE_ONE
            ) from error
        if found != digest:
            raise PackageError(
                f"{root / name} has changed since the bundle was written: its sha256 is {found},"
                f" expected {digest}.",
                hint=_WRITE_ONE,
            )
    return bundle
