"""Read a checkpoint file in the form that its content tells, never its name.

Nothing that a file names is executed, unless the user trusts the file.
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import pathlib
import pickletools
import re
import types
import uuid
import zipfile
from _codecs import encode
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy._core import multiarray  # type: ignore[import-not-found, unused-ignore]
from safetensors import SafetensorError
from safetensors.torch import load_file

from moh_deploy.errors import CheckpointError
from moh_deploy.system.bounded_file import is_plain_name, open_regular, sha256_of
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.suggest import shortened
from moh_deploy.system.user_code import describe_error, import_hint

FileForm = Literal[
    "torch_zip", "torch_legacy", "safetensors", "safetensors_index", "pt2", "pt2_legacy", "onnx"
]

# The pickled number that opens what torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_EXPECTED = (
    "Expected a file written by torch.save, torch.export.save or safetensors, or an ONNX model."
)
# The protobuf message of a model: the number of its IR version (under 128), then another field.
_ONNX_HEAD = re.compile(rb"\x08[\x03-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca]")
_KINDS = ("safetensors.index.json", "safetensors", "pt2", "pt", "pth", "bin", "onnx")


def detect_form(path: Path) -> FileForm:
    """Return how the file stores its model.

    Raises:
        CheckpointError: The file is missing, empty, truncated, or nothing that can be loaded.
    """
    if path.is_dir():
        inner = [file for kind in _KINDS for file in sorted(path.glob(f"*.{kind}"))]
        raise CheckpointError(
            f"{path}: is a directory; expected a checkpoint file.",
            hint=f"Did you mean '{inner[0]}'?" if inner else None,
        )
    try:
        with open_regular(path) as file:
            head, size = file.read(16), file.seek(0, 2)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes).")
    if head.startswith(b"PK\x03\x04"):
        return _zip_form(path)
    if _LEGACY_MAGIC in head:
        return "torch_legacy"
    if head[8:9] == b"{":  # after the size of the header, in 8 bytes, the header in JSON
        needed = 8 + int.from_bytes(head[:8], "little")
        if needed > size:
            raise CheckpointError(
                f"{path}: is a truncated safetensors file: its header alone needs {needed} bytes,"
                f" the file has {size}.",
                hint="Copy or download it again.",
            )
        return "safetensors"
    if head.lstrip().startswith(b"{"):
        return "safetensors_index"
    if _ONNX_HEAD.match(head):
        return "onnx"
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: is a plain pickle that torch.save did not write.",
            hint="In the program that made it, write torch.save(model.state_dict(), ...).",
        )
    raise CheckpointError(
        f"{path}: is not a checkpoint; it starts with {head[:8]!r}.", hint=_EXPECTED
    )


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


def read_weights(path: Path, *, trust_pickle: bool) -> tuple[object, str]:
    """Return what a file of weights holds, and its digest: of shards, that of their digests.

    Trusted pickles import code of the user: call this inside `user_code`.

    Raises:
        CheckpointError: It is damaged, or holds objects that run code and is not trusted.
    """
    is_index = detect_form(path) == "safetensors_index"
    files = list_shards(path) if is_index else (path,)
    state: dict[object, object] = {}
    digests: list[str] = []
    content: object = state
    for file in files:
        form = detect_form(file)
        content = (
            read_safetensors(file)
            if form.startswith("safetensors")
            else _read_pickled(file, is_zip=form == "torch_zip", trust=trust_pickle)
        )
        digests.append(sha256_of(file))
        if is_index and not isinstance(content, Mapping):
            raise CheckpointError(f"{file}: holds no weights; expected names mapped to tensors.")
        state |= content if isinstance(content, Mapping) else {}
    return state if is_index else content, joined_digest(digests)


def joined_digest(digests: Sequence[str]) -> str:
    """Return the digest of the digests of several files; that of a single one is its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


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


def list_shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index (`*.safetensors.index.json`) lists; they lie beside it.

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
    return shards


# Types whose unpickling builds a plain value and calls nothing that the file names.
_PLAIN_TYPES: tuple[type, ...] = (
    *(int, float, complex, bool, str, bytes, bytearray, slice, range, uuid.UUID),
    *(list, tuple, dict, set, frozenset),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(argparse.Namespace, types.SimpleNamespace),
    # The class of paths of this platform; of another platform's paths only the pure ones exist.
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())),
    *(np.ndarray, np.dtype),
    *(getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")),
)
# numpy 1 called the package `core`: old files name it so.
_PLAIN_FUNCTIONS: tuple[tuple[Callable[..., object], str], ...] = (
    (encode, "_codecs.encode"),
    *(
        (getattr(multiarray, name), f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
_UNSAFE_GLOBAL = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
_MISSING_ATTRIBUTE = re.compile(r"(?:get attribute '([^']+)' on|has no attribute '([^']+)')")


def _read_pickled(path: Path, *, is_zip: bool, trust: bool) -> object:
    """Return what torch.save stored: tensors on the CPU and, in an archive, mapped from disk.

    Without trust only tensors and plain data are read: numbers, strings, containers, paths, dates,
    numpy arrays, `argparse.Namespace`.
    """
    if not is_zip:
        try:
            with path.open("rb") as file:
                for _ in ("magic number", "version", "system", "object"):  # each a pickle
                    collections.deque(pickletools.genops(file), maxlen=0)
        except ValueError as error:
            raise CheckpointError(
                f"{path}: is truncated or damaged: {error}.", hint="Copy or download it again."
            ) from error
    load = partial(torch.load, path, map_location="cpu", mmap=is_zip)
    try:
        with torch.serialization.safe_globals([*_PLAIN_TYPES, *_PLAIN_FUNCTIONS]):
            return cast(object, load(weights_only=True))
    # The reader for untrusted files answers with many kinds of errors to what it does not know.
    except Exception as error:
        if not trust:
            raise _untrusted(path, is_zip, error) from error
    try:
        return cast(object, load(weights_only=False))
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a trusted file that its classes do not fit."""
    if isinstance(error, ModuleNotFoundError):
        return CheckpointError(
            f"{path}: was pickled with classes of module '{error.name}', which cannot be imported.",
            hint=import_hint(error, near=path.parent),
        )
    is_missing = isinstance(error, AttributeError)
    match = _MISSING_ATTRIBUTE.search(str(error)) if is_missing else None
    if match is None:
        return CheckpointError(
            f"{path}: reading it failed: {describe_error(error)}.",
            hint=None
            if is_missing
            else "The file is damaged, or was pickled with other versions of its classes.",
        )
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
    """Return the error for a file that plain reading refuses: it names the classes in it."""
    unsafe = _UNSAFE_GLOBAL.findall(str(error))
    if is_zip:
        known = {f"{cls.__module__}.{cls.__qualname__}" for cls in _PLAIN_TYPES}
        known |= {name for _, name in _PLAIN_FUNCTIONS}
        with contextlib.suppress(Exception):  # a damaged pickle has no list
            listed = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            unsafe = sorted(listed - known) or unsafe
    reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    if not unsafe and not reason:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return CheckpointError(f"{path}: is damaged: {reason}", hint="Copy or download it again.")
    return CheckpointError(
        f"{path}: holds pickled objects that run code when loaded: {shortened(unsafe) or reason}.",
        hint="If you trust the file, pass --trust-pickle (and --code-dir for its classes)."
        " Otherwise save the weights alone, torch.save(model.state_dict(), ...), and pass --factory"
        " MODULE:CALLABLE.",
    )
