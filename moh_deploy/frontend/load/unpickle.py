"""Files of torch.save: read without executing anything, unless the user trusts them."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import pathlib
import pickletools
import re
import types
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from moh_deploy.errors import CheckpointError
from moh_deploy.system.suggest import shortened
from moh_deploy.system.user_code import describe_error, missing_module_hint

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
