"""Read an engine directory, and refuse one that is not as it was written."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.package import require_finished
from moh_deploy.runtime.tensorrt.engine_dir import (
    ENGINE_FORMAT_VERSION,
    ENGINE_MANIFEST_NAME,
    EngineManifest,
    looks_like_engine,
    parse_engine_manifest,
)
from moh_deploy.system.digest import sha256_of

_BUILD_AGAIN = "Build it again: moh-deploy build PACKAGE --backend ... --output ENGINE_DIR."


def is_engine_dir(root: Path | str) -> bool:
    """Tell whether `moh-deploy build` wrote a directory, even if it was changed since."""
    return looks_like_engine(Path(root) / ENGINE_MANIFEST_NAME)


def read_engine_dir(root: Path) -> EngineManifest:
    """Return the manifest of an engine directory.

    Raises:
        PackageError: It is none, of another format version, or a file is missing or has changed.
    """
    path = root / ENGINE_MANIFEST_NAME
    # A directory that is still being written may look whole.
    require_finished(root)
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
    for name, sha256 in manifest.files.items():
        _check_digest(root / name, sha256)
    return manifest


def _check_digest(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error}.", hint=_BUILD_AGAIN) from error
    if found != expected:
        raise PackageError(f"{path} has changed since the engine was built.", hint=_BUILD_AGAIN)
