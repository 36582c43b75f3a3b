"""Bundles that tests write and damage."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import BUNDLE_NAME
from moh_deploy.system.bounded_file import sha256_of, sha256_of_json
from tests.damaged_library import damaged_library
from tests.handmade_package import write_package
from tests.kernel_library import required_library


def bundle_of_handmade(folder: Path, **settings: Any) -> Path:
    """Write the handmade package's bundle; its name is `handmade`."""
    package = write_package(folder / "package").root
    root = folder / "bundle"
    write_bundle(find_deployed(package), root, ServingSettings("handmade", **settings))
    return root


def damaged_bundle(folder: Path, *, has_digest: bool, **settings: Any) -> Path:
    """Write the bundle, and damage its kernels; `has_digest` makes their digest anew."""
    root = bundle_of_handmade(folder, **settings)
    name = f"lib/{required_library().name}"
    replace_whole(root, name, damaged_library(), repairs_digest=has_digest)
    return root


def rewrite_bundle(root: Path, changes: Mapping[str, object]) -> None:
    """Change values of `bundle.json` and repair its digest."""
    path = root / BUNDLE_NAME
    content = json.loads(path.read_text())
    content.pop("sha256")
    content |= changes
    path.write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))


def replace_in(root: Path, name: str, old: str, new: str) -> None:
    """Edit a text file of a bundle."""
    path = root / name
    text = path.read_text()
    assert old in text, f"{name} has no {old!r}"
    path.write_text(text.replace(old, new))


def replace_whole(root: Path, name: str, content: bytes, *, repairs_digest: bool = True) -> None:
    """Put another file in place of one, and its digest into `bundle.json`."""
    path = root / name
    # Files may be links to those of the package.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    if not repairs_digest:
        return
    files = json.loads((root / BUNDLE_NAME).read_text())["files"]
    rewrite_bundle(root, {"files": {**files, name: sha256_of(path)}})
