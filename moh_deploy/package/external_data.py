"""Check where a package's weights lie: in its model, or in the one file beside it that is listed.

Whatever else a model names would be read without a digest, from anywhere on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.onnx_outline import ExternalTensor

MODEL_NAME = "model.onnx"
MODEL_DATA_NAME = "model.onnx.data"


def check_external_data(root: Path, manifest: Manifest, tensors: Sequence[ExternalTensor]) -> None:
    """Check that all external data is in `model.onnx.data`, that this is listed, and long enough.

    Args:
        root: The package, whose listed files are there.
        tensors: Those of the model with external data.

    Raises:
        PackageError: A tensor has its data elsewhere.
    """
    if not tensors:
        return
    for tensor in tensors:
        # A path, relative to the model, that could lead out of the package.
        location = tensor.entries.get("location", "")
        if location != MODEL_DATA_NAME:
            raise PackageError(
                f"{root / MODEL_NAME}: the data of {_shown(tensor)} is in '{location}', expected"
                f" '{MODEL_DATA_NAME}', the one file that weights may be in."
            )
    if MODEL_DATA_NAME not in manifest.files:
        raise PackageError(
            f"{root / MODEL_NAME} has the data of {_shown(tensors[0])} in"
            f" {MODEL_DATA_NAME}, which the manifest does not list: nothing says what it held when"
            " the package was written.",
            hint="Export the model again, or get the package again from where it was made.",
        )
    file_bytes = (root / MODEL_DATA_NAME).stat().st_size
    for tensor in tensors:
        _check_range(root, tensor, file_bytes)


def _check_range(root: Path, tensor: ExternalTensor, file_bytes: int) -> None:
    # Optional in ONNX: without, the data begins at 0 and is as long as shape and dtype say.
    offset = tensor.entries.get("offset", "0")
    length = tensor.entries.get("length", str(tensor.num_bytes))
    # Under 20 digits: longer ones are no offset of any file, and int() of many digits takes time.
    is_number = all(
        name.isascii() and name.isdecimal() and len(name) < 20 for name in (offset, length)
    )
    if not is_number or int(offset) + int(length) > file_bytes or int(length) != tensor.num_bytes:
        raise PackageError(
            f"{root / MODEL_NAME}: the data of {_shown(tensor)} is {length[:40]} bytes from byte"
            f" {offset[:40]} of {MODEL_DATA_NAME}, which has {file_bytes}; expected"
            f" {tensor.num_bytes or 'no'} bytes within it."
        )


def _shown(tensor: ExternalTensor) -> str:
    return f"tensor '{tensor.name[:200]}'" if tensor.name else "a tensor without a name"
