"""Packages that were changed by somebody who computes the digests anew."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from moh_deploy.system.bounded_file import sha256_of


def change_model(root: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the model of a package, and what its manifest says of the file."""
    model = onnx.load(root / "model.onnx", load_external_data=False)
    change(model)
    replace_file(root, "model.onnx", model.SerializeToString())


def replace_file(root: Path, name: str, content: bytes) -> None:
    """Replace a file of a package, and what its manifest says of it."""
    (root / name).write_bytes(content)
    digest = sha256_of(root / name)
    rewrite_manifest(root, lambda found: found["files"].update({name: digest}))


def rewrite_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says, its own digest included."""
    path = root / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("sha256", None)
    change(content)
    path.write_text(json.dumps({**content, "sha256": digest_of(content)}), encoding="utf-8")


def digest_of(content: dict[str, Any]) -> str:
    """Return the digest of a manifest, as docs/package-format.md describes it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
