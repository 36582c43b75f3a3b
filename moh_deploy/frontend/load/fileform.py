"""Tell the form of a checkpoint file from its content, never from its name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from moh_deploy.errors import CheckpointError
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.suggest import shortened

FileForm = Literal[
    "torch_zip", "torch_legacy", "safetensors", "safetensors_index", "pt2", "pt2_legacy", "onnx"
]

# The pickled number that opens what torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_EXPECTED = (
    "Expected a file written by torch.save, torch.export.save or safetensors, or an ONNX model."
)
# The protobuf message of a model: the number of its IR version (under 128), then another field.
_ONNX_HEAD = re.compile(rb"\x08[\x03-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca]")


def detect_form(path: Path) -> FileForm:
    """Return how the file stores its model.

    Raises:
        CheckpointError: The file is missing, empty, truncated, or nothing that can be loaded.
    """
    head = _read_head(path)
    if head.startswith(_ZIP_MAGIC):
        return _zip_form(path)
    if _LEGACY_MAGIC in head:
        return "torch_legacy"
    if head[8:9] == b"{":  # after the size of the header, in 8 bytes, the header in JSON
        return _safetensors_form(path, head)
    if head.lstrip().startswith(b"{"):
        return "safetensors_index"
    if _ONNX_HEAD.match(head):
        return "onnx"
    if head.startswith(_PICKLE_MAGIC):
        raise CheckpointError(
            f"{path}: is a plain pickle that torch.save did not write.",
            hint="In the program that made it, write torch.save(model.state_dict(), ...).",
        )
    raise CheckpointError(
        f"{path}: is not a checkpoint; it starts with {head[:8]!r}.", hint=_EXPECTED
    )


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a directory; expected a checkpoint file.", hint=_directory_hint(path)
        )
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes).")
    return head


def _directory_hint(path: Path) -> str | None:
    known = (
        "*.safetensors.index.json",
        "*.safetensors",
        "*.pt2",
        "*.pt",
        "*.pth",
        "*.bin",
        "*.onnx",
    )
    found = [file for pattern in known for file in sorted(path.glob(pattern))]
    return f"Did you mean '{found[0]}'?" if found else None


def _zip_form(path: Path) -> FileForm:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise CheckpointError(
            f"{path}: is a truncated or damaged archive ({path.stat().st_size} bytes): its table of"
            " contents is missing.",
            hint="Copy or download it again.",
        ) from None
    # Members lie in a folder named after the file that was saved.
    names = {member.partition("/")[2] for member in members}
    if "archive_format" in names and any(name.startswith("models/") for name in names):
        return "pt2"
    if "serialized_exported_program.json" in members:
        return "pt2_legacy"
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path}: is a zip archive but not a checkpoint; it holds {shortened(members)}.",
            hint=_EXPECTED,
        )
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(
            f"{path}: is a TorchScript archive (torch.jit.save), which cannot be exported.",
            hint="Save the original module: torch.save(model.state_dict(), ...) with --factory, or"
            " torch.export.save(torch.export.export(model, ...), ...).",
        )
    return "torch_zip"


def _safetensors_form(path: Path, head: bytes) -> FileForm:
    needed = 8 + int.from_bytes(head[:8], "little")
    size = path.stat().st_size
    if needed > size:
        raise CheckpointError(
            f"{path}: is a truncated safetensors file: its header alone needs {needed} bytes, the"
            f" file has {size}.",
            hint="Copy or download it again.",
        )
    return "safetensors"
