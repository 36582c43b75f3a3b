"""Named arrays in one file, as `numpy.load` reads them.

Unlike `numpy.savez`: any member name is allowed, equal content gives equal bytes, and bfloat16
survives, stored as its raw two bytes (numpy's `V2`), which is what `numpy.savez` does with it too.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.bounded_file import open_archive, open_regular
from moh_deploy.system.replaceable import FileKind

Array: TypeAlias = NDArray[np.generic]
BoolArray: TypeAlias = NDArray[np.bool_]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_RAW_BFLOAT16 = np.dtype("V2")


def _is_npz(path: Path) -> bool:
    with open_archive(path, error=MoHDeployError, what="an npz file", hint="") as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


NPZ_FILE = FileKind("file of arrays (npz)", _is_npz)


def write_npz(file: Path | IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Write arrays in the order given."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # ZipInfo's own date is constant, so equal arrays give an equal file.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                stored = np.asarray(array)
                if stored.dtype == BFLOAT16:
                    stored = stored.view(_RAW_BFLOAT16)
                np.lib.format.write_array(member, stored, allow_pickle=False)


def read_npz(path: Path, *, error: type[MoHDeployError]) -> dict[str, Array]:
    """Read all arrays, in file order. Nothing in the file is executed.

    Args:
        path: The file.
        error: What to raise if it cannot be read.
    """
    return _read_members(path, error, _read_member)


def map_npz(path: Path, *, error: type[MoHDeployError]) -> dict[str, Array]:
    """Map all arrays: what is looked at is read, and memory holds no more.

    As `read_npz`, except that check sums of mapped arrays are skipped. Compressed members are read.
    """
    return _read_members(path, error, _map_member)


def read_npy(path: Path, *, error: type[MoHDeployError]) -> Array:
    """Read the array of an npy file; as `read_npz`."""
    try:
        with open_regular(path) as file:
            return _read_array(file, file.seek(0, 2) - file.seek(0))
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist.") from missing
    except MemoryError as problem:
        raise error(f"{path} cannot be read: it does not fit into memory.") from problem
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}.") from problem
    except (ValueError, EOFError) as problem:
        raise error(f"{path} cannot be read as an npy file: {problem}.") from problem


def _read_members(
    path: Path,
    error: type[MoHDeployError],
    member: Callable[[zipfile.ZipFile, zipfile.ZipInfo], Array],
) -> dict[str, Array]:
    hint = "numpy.savez writes such files; object arrays are not allowed in them."
    if path.suffix == ".npy":
        hint = (
            "An npy file is one array without a name; give it that of an input:"
            f" numpy.savez('{path.stem}.npz', NAME=numpy.load('{path.name}'))."
        )
    arrays: dict[str, Array] = {}
    with open_archive(path, error=error, what="an npz file", hint=hint) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"member '{name}' is there twice")
            arrays[name] = member(archive, info)
    return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        return _read_array(member, info.file_size)


def _read_array(stream: IO[bytes], num_bytes: int) -> Array:
    """Read an npy file of so many bytes."""
    layout = _read_layout(stream, num_bytes)
    array = np.empty(layout.shape, layout.dtype, layout.order)
    # A view of the bytes in the order of the file, be it by rows or by columns.
    flat = array.reshape(-1, order="A").view(np.uint8)
    # What an archive says of a size need not be true: the stream may end before.
    for start in range(0, flat.size, _CHUNK_BYTES):
        wanted = min(_CHUNK_BYTES, flat.size - start)
        chunk = stream.read(wanted)
        if len(chunk) < wanted:
            raise EOFError("an array ends before its last element")
        flat[start : start + wanted] = np.frombuffer(chunk, np.uint8)
    stream.read(1)  # at its end an archive compares the sum
    return _from_storable(array)


_CHUNK_BYTES = 1 << 20


def _map_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    if info.compress_type != zipfile.ZIP_STORED:
        return _read_member(archive, info)
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset + _NAME_SIZES_AT)
    # Of the local header, not the directory: extra fields of the two may differ in length.
    sizes = struct.unpack("<HH", file.read(4))  # of the name and of extra fields
    file.seek(info.header_offset + _LOCAL_HEADER + sum(sizes))
    layout = _read_layout(file, info.file_size)
    # The system refuses an empty mapping, and a scalar is not worth one.
    if 0 in layout.shape or not layout.shape:
        return _read_member(archive, info)
    mapped = np.memmap(file, layout.dtype, "r", file.tell(), layout.shape, layout.order)
    return _from_storable(mapped.view(np.ndarray))


# Of a zip file, where each member begins with a header of its own.
_LOCAL_HEADER, _NAME_SIZES_AT = 30, 26


class _Layout(NamedTuple):
    """Shape, dtype and order of an array, from the header of its npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    order: Literal["C", "F"]


def _read_layout(stream: IO[bytes], num_bytes: int) -> _Layout:
    """Read the header of an npy file of so many bytes, and check that the array is as large.

    Nothing of the size that it declares is allocated before that.

    Source: numpy.lib.format, versions 1.0 and 2.0; 3.0 is for names of fields.

    Raises:
        ValueError: It is no npy file, or holds something else than numbers, truth values or text.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _VERSIONS:
        raise ValueError(f"npy version {version} holds more than an array of numbers")
    parse, length_bytes = _VERSIONS[version]
    raw_length = stream.read(length_bytes)
    length = int.from_bytes(raw_length, "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"the header of an array is {length} bytes long")
    try:
        shape, by_columns, dtype = parse(io.BytesIO(raw_length + stream.read(length)))
    except Exception as problem:  # it is parsed as Python, which answers with many kinds of errors
        raise ValueError(f"the header of an array cannot be read: {problem}") from problem
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they run code")
    if not dtype.itemsize or (dtype.kind not in _KINDS and dtype != _RAW_BFLOAT16):
        raise ValueError(f"an array is of dtype {dtype}, expected numbers, truth values or text")
    declared = math.prod(shape) * dtype.itemsize
    held = num_bytes - np.lib.format.MAGIC_LEN - length_bytes - length
    # True counts as 1 in a product, and as nothing that an array is made with.
    sizes_fit = all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if declared != held or not sizes_fit or len(shape) > _MOST_AXES:
        raise ValueError(
            f"an array is declared as {dtype}{list(shape)}, {declared} bytes, but has {held}"
        )
    return _Layout(shape, dtype, "F" if by_columns else "C")


_VERSIONS = {
    (1, 0): (np.lib.format.read_array_header_1_0, 2),
    (2, 0): (np.lib.format.read_array_header_2_0, 4),
}
_LONGEST_HEADER = 10_000  # as numpy has it
_MOST_AXES = 32  # numpy 2 allows 64; ONNX Runtime and torch run fewer
_KINDS = "biufcUS"


def _from_storable(array: Array) -> Array:
    if array.dtype.kind == "U":
        # Numbers that are no characters, surrogates among them, at which Python fails when it makes
        # text of them: four bytes a character, in the byte order of the dtype.
        codes = np.frombuffer(array.tobytes(), f"{array.dtype.str[0]}u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("an array of text holds numbers that are no characters")
    if array.dtype == _RAW_BFLOAT16:
        return array.view(BFLOAT16)
    # Runtimes read bytes as this machine has them, whatever a file of another one says.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
