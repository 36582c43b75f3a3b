"""Named arrays in one file, as `numpy.load` reads them.

Unlike `numpy.savez`: any member name is allowed, equal content gives equal bytes, and bfloat16
survives, stored as its raw two bytes (numpy's `V2`), which is what `numpy.savez` does with it too.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import MoHDeployError

Array: TypeAlias = NDArray[np.generic]

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
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _read_member(archive, name)
                for name in archive.namelist()
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


def _read_member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array.view(BFLOAT16) if array.dtype == _RAW_BFLOAT16 else array
