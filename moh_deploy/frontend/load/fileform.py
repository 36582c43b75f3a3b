"""Tell the form of a checkpoint file from its content, never from its name."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import hashlib
import io
import pathlib
import pickletools
import re
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moh_deploy.errors import CheckpointError
from moh_deploy.system.bounded_file import is_plain_name, open_regular, sha256_of
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.suggest import shortened
from moh_deploy.system.user_code import describe_error, missing_module_hint

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


# Weights in safetensors: one file, or shards that an index (`*.safetensors.index.json`) lists.


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load_file(path)
    # A dtype that torch has not, or that safetensors has no name for, is a KeyError or the like.
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is a damaged safetensors file: {error}.", hint="Copy or download it again."
        ) from error


def read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all shards that lie beside their index.

    Raises:
        CheckpointError: The index is not one, or a shard is missing or damaged.
    """
    return {name: t for shard in list_shards(index) for name, t in read_safetensors(shard).items()}


def list_shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index lists; they lie beside it.

    Raises:
        CheckpointError: The file is not an index of shards, or a shard is missing.
    """
    try:
        content = cast("dict[str, Any]", read_json(index, error=CheckpointError))
        names = set(content["weight_map"].values())
        shards = tuple(index.parent / Path(name).name for name in sorted(names))
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is not an index of safetensors shards: it has no 'weight_map' of names to"
            " files."
        ) from error
    for shard in shards:
        _check_shard(index, shard)
    return shards


def _check_shard(index: Path, shard: Path) -> None:
    if not is_plain_name(shard.name):
        raise CheckpointError(f"{index}: lists '{shard.name}', expected a plain file name.")
    try:
        open_regular(shard).close()
    except FileNotFoundError:
        raise CheckpointError(f"{shard}: no such file; '{index.name}' lists it.") from None
    except OSError as error:
        raise CheckpointError(
            f"{shard}: cannot be read: {error.strerror}; '{index.name}' lists it."
        ) from error


def sha256_of_shards(index: Path) -> str:
    """Return the digest of the digests of all shards, in order of their names."""
    digests = [sha256_of(shard) for shard in list_shards(index)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


# Files of torch.save: read without executing anything, unless the user trusts them.

_PLAIN_TYPES: tuple[type, ...] = (
    *(int, float, complex, bool, str, bytes, bytearray, slice, range, uuid.UUID),
    *(list, tuple, dict, set, frozenset),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(argparse.Namespace, types.SimpleNamespace),
)
_UNSAFE_GLOBAL = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
_LEGACY_PICKLES = 4
_REASON = "WeightsUnpickler error:"
_MISSING_ATTRIBUTE = re.compile(r"(?:get attribute '([^']+)' on|has no attribute '([^']+)')")


def read_pickled(path: Path, *, is_zip: bool, trust_pickle: bool) -> object:
    """Return what torch.save stored: tensors on the CPU and, in an archive, mapped from disk.

    Without trust only tensors and plain data are read: numbers, strings, containers, paths, dates,
    numpy arrays, `argparse.Namespace`. Trusted files import code of the user: call this inside
    `user_code`.

    Raises:
        CheckpointError: The file is damaged, holds other objects and is not trusted, or its classes
            cannot be imported.
    """
    if not is_zip:
        _require_complete(path)
    try:
        with torch.serialization.safe_globals(_plain_data_globals()):
            return _load(path, is_zip, weights_only=True)
    # The reader for untrusted files answers with many kinds of errors to what it does not know.
    except Exception as error:
        if trust_pickle:
            return _read_trusted(path, is_zip)
        raise _untrusted(path, is_zip, error) from error


def reads_as_plain_data(data: object) -> bool:
    """Return whether torch reads this binary file as tensors and plain Python values, unaided."""
    try:
        torch.load(data, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
    except Exception:  # any failure means: not plainly readable
        return False
    return True


class _Unread:
    """Stands for an object of any class, and keeps its attributes."""

    def __init__(self, *_: object) -> None:
        """Take what its class would, and do nothing with it."""


def read_without_classes(data: bytes) -> object:
    """Return what torch.save stored, with objects that have attributes only for those of classes:
    nothing that the file names is imported or called.

    Raises:
        ValueError: It cannot be read so.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        with torch.serialization.safe_globals([(_Unread, name) for name in named]):
            found: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the reader for untrusted files answers with many kinds
        raise ValueError("not readable without its classes") from error
    return found


def _load(path: Path, is_zip: bool, *, weights_only: bool) -> object:
    loaded: object = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=is_zip)
    return loaded


def _require_complete(path: Path) -> None:
    """Refuse an old file whose pickles (magic number, version, system, object) are cut off."""
    try:
        with path.open("rb") as file:
            for _ in range(_LEGACY_PICKLES):
                collections.deque(pickletools.genops(file), maxlen=0)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: is truncated or damaged: {error}.", hint="Copy or download it again."
        ) from error


def _read_trusted(path: Path, is_zip: bool) -> object:
    try:
        return _load(path, is_zip, weights_only=False)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: was pickled with classes of module '{error.name}', which cannot be imported.",
            hint=missing_module_hint(error.name, near=path.parent),
        ) from error
    except AttributeError as error:
        raise _missing_class(path, error) from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: reading it failed: {describe_error(error)}.",
            hint="The file is damaged, or was pickled with other versions of its classes.",
        ) from error


def _missing_class(path: Path, error: AttributeError) -> CheckpointError:
    match = _MISSING_ATTRIBUTE.search(str(error))
    if match is None:
        return CheckpointError(f"{path}: reading it failed: {describe_error(error)}.")
    name = match[1] or match[2]
    if "__main__" in str(error):
        return CheckpointError(
            f"{path}: was pickled with class '{name}' of the script that saved it ('__main__'),"
            " which cannot be imported from elsewhere.",
            hint="Move the class to a module, write torch.save(model.state_dict(), ...), and pass"
            " --factory MODULE:CALLABLE with --code-dir.",
        )
    return CheckpointError(
        f"{path}: was pickled with class '{name}', which its module no longer has: {error}.",
        hint="Point --code-dir at the version of the code that saved the file.",
    )


def _untrusted(path: Path, is_zip: bool, error: Exception) -> CheckpointError:
    unsafe = _unsafe_globals(path, is_zip, error)
    reason = str(error).partition(_REASON)[2].strip().partition("\n")[0]
    if not unsafe and not reason:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return CheckpointError(f"{path}: is damaged: {reason}", hint="Copy or download it again.")
    return CheckpointError(
        f"{path}: holds pickled objects that run code when loaded: {shortened(unsafe) or reason}.",
        hint="If you trust the file, pass --trust-pickle (and --code-dir for its classes)."
        " Otherwise save the weights alone, torch.save(model.state_dict(), ...), and pass --factory"
        " MODULE:CALLABLE.",
    )


def _unsafe_globals(path: Path, is_zip: bool, error: Exception) -> list[str]:
    known = {
        f"{item.__module__}.{item.__qualname__}" if isinstance(item, type) else item[1]
        for item in _plain_data_globals()
        if isinstance(item, (type, tuple))
    }
    if is_zip:
        with contextlib.suppress(Exception):  # a damaged pickle has no list: the error tells below
            listed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if unsafe := sorted(set(listed) - known):
                return unsafe
    return _UNSAFE_GLOBAL.findall(str(error))


def _plain_data_globals() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return types whose unpickling builds a plain value and calls nothing that the file names."""
    numpy_dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    numpy_types = [np.ndarray, np.dtype, *numpy_dtypes]
    # The class of paths of this platform; of another platform's paths only the pure ones exist.
    paths = [pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())]
    return [*_PLAIN_TYPES, *paths, *numpy_types, *_numpy_reconstructors()]


def _numpy_reconstructors() -> list[tuple[Callable[..., object], str]]:
    from _codecs import encode

    from numpy._core import multiarray  # type: ignore[import-not-found, unused-ignore]

    # numpy 1 called the package `core`: old files name it so.
    functions = [
        (getattr(multiarray, name), f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    return [*functions, (encode, "_codecs.encode")]
