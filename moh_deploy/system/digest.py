"""The one digest that files are identified by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from moh_deploy.system.bounded_file import open_regular

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hex.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(content: Mapping[str, object]) -> str:
    """Return the sha256 of plain JSON types, in hex; equal content has an equal one."""
    # Sorted and without blanks.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
