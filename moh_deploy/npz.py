"""Named arrays in one file, as `numpy.load` reads them.

Unlike `numpy.savez`: any member name is allowed, equal content gives equal bytes, and bfloat16
survives, stored as its raw two bytes (numpy's `V2`), which is what `numpy.savez` does with it too.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import MoHDeployError

Array: TypeAlias = NDArray[np.generic]
BoolArray: TypeAlias = NDArray[np.bool_]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_RAW_BFLOAT16 = np.dtype("V2")


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays in the order given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # ZipInfo's own date is constant, so equal arrays give an equal file.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _to_storable(array), allow_pickle=False)


def read_npz(path: Path, *, error: type[MoHDeployError]) -> dict[str, Array]:
    """Read all arrays, in file order. Nothing in the file is executed.

    Args:
        path: The file.
        error: What to raise if it cannot be read.
    """
    return _read(path, error, _read_member)


def map_npz(path: Path, *, error: type[MoHDeployError]) -> dict[str, Array]:
    """Map all arrays: what is looked at is read, and memory holds no more.

    As `read_npz`, but that nobody checks the sums of what is mapped. Compressed members are read.
    """
    return _read(path, error, _map_member)


def _read(
    path: Path,
    error: type[MoHDeployError],
    member: Callable[[zipfile.ZipFile, zipfile.ZipInfo], Array],
) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): member(archive, info)
                for info in archive.infolist()
            }
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist.") from missing
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as problem:
        raise error(
            f"{path} cannot be read as an npz file: {problem}.",
            hint="numpy.savez writes such files; object arrays are not allowed in them.",
        ) from problem


def _to_storable(array: Array) -> Array:
    array = np.asarray(array)
    return array.view(_RAW_BFLOAT16) if array.dtype == BFLOAT16 else array


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array.view(BFLOAT16) if array.dtype == _RAW_BFLOAT16 else array


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _map_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    assert archive.filename is not None
    with Path(archive.filename).open("rb") as file:
        file.seek(info.header_offset + _NAME_SIZES_AT)
        sizes = struct.unpack("<HH", file.read(4))  # of the name and of extra fields
        file.seek(info.header_offset + _LOCAL_HEADER + sum(sizes))
        stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        read_header = _HEADERS.get(np.lib.format.read_magic(file)) if stored else None
        if read_header is None:
            return _read_member(archive, info)
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject or 0 in shape or not shape:
            return _read_member(archive, info)
        order: Literal["C", "F"] = "F" if by_columns else "C"
        mapped = np.memmap(file, dtype, "r", file.tell(), shape, order)
    array: Array = mapped.view(np.ndarray)
    return array.view(BFLOAT16) if array.dtype == _RAW_BFLOAT16 else array


# Of a zip file, where each member begins with a header of its own.
_LOCAL_HEADER, _NAME_SIZES_AT = 30, 26
