"""npz and npy files with arrays, names, headers and the archive itself changed."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from moh_deploy.system.npz import Array
from tests.fuzz.changed_bytes import ByteChange, byte_changes, change_bytes

_DTYPES = (
    "<f4",
    "<f2",
    "<f8",
    ">f4",
    "<i8",
    "<i4",
    "|u1",
    "|b1",
    "|V2",
    "<U5",
    "|S3",
    "<c8",
    "<M8[s]",
    "|V9",
)
_SHAPES = ((), (0,), (1,), (3,), (2, 3), (2, 3, 4), (2, 3, 8), (2, 0, 3), (1,) * 33)
_NAMES = (
    "",
    "x",
    "0/inputs/x",
    "0/gates/1",
    "1/inputs/x",
    "9/sizes/a",
    "-1/inputs/x",
    "0/inputs/",
    "²/inputs/x",
    "0/mined/layers",
    "0/mined/x",
    "a\\b",
    "é",
    "0//",
    "0/gates/00",
    "labels",
)
_HEADERS = (
    "",
    "{}",
    "[1",
    "(" * 300,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (1,)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551616,)}",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (4611686018427387904, 4)}",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
    "{'descr': ('<f4', (1000000, 1000000)), 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999,)}",
)


class ArrayChange(NamedTuple):
    """One change of a member.

    Attributes:
        kind: What is done.
        member: Which member.
        name: What it is called.
        dtype, shape, fill: Of what takes its place.
        header: What its header says.
    """

    kind: str
    member: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: int
    header: str


class ArchiveChange(NamedTuple):
    """All that is changed of an archive."""

    members: list[ArrayChange]
    method: int
    raw: list[ByteChange]


array_changes = st.builds(
    ArrayChange,
    st.sampled_from(
        ["array", "array", "array", "values", "header", "rename", "remove", "repeat", "damage"]
    ),
    st.integers(0, 40),
    st.sampled_from(_NAMES),
    st.sampled_from(_DTYPES),
    st.sampled_from(_SHAPES),
    st.integers(0, 255),
    st.sampled_from(_HEADERS),
)
archive_changes = st.builds(
    ArchiveChange,
    st.lists(array_changes, max_size=3),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.just([]) | st.just([]) | byte_changes,
)


def change_archive(arrays: Mapping[str, Array], change: ArchiveChange) -> bytes:
    """Return the content of an npz file."""
    members = [(f"{name}.npy", npy_bytes(array)) for name, array in arrays.items()]
    for member in change.members:
        index = member.member % max(1, len(members))
        if index < len(members):
            _change_member(members, index, member)
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", change.method) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in members:
            archive.writestr(name, data)
    return change_bytes(content.getvalue(), change.raw) if change.raw else content.getvalue()


def change_npy(array: Array, change: ArrayChange, raw: list[ByteChange]) -> bytes:
    """Return the content of an npy file."""
    members = [("x", npy_bytes(array))]
    _change_member(members, 0, change)
    return (
        change_bytes(members[0][1] if members else b"", raw)
        if raw
        else members[0][1]
        if members
        else b""
    )


def npy_bytes(array: Array) -> bytes:
    """Return an array as numpy saves it."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
    return content.getvalue()


def _change_member(members: list[tuple[str, bytes]], index: int, change: ArrayChange) -> None:
    name, data = members[index]
    if change.kind == "array":
        members[index] = name, npy_bytes(_filled(change))
    elif change.kind == "values":
        head = data[:128]
        members[index] = name, head + bytes([change.fill]) * (len(data) - len(head))
    elif change.kind == "header":
        text = change.header.encode()
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        members[index] = name, head + bytes(change.fill)
    elif change.kind == "rename":
        members[index] = f"{change.name}.npy", data
    elif change.kind == "remove":
        del members[index]
    elif change.kind == "repeat":
        members.append((name, data))
    else:
        members[index] = name, data[: change.fill]


def _filled(change: ArrayChange) -> Any:
    dtype = np.dtype(change.dtype)
    count = int(np.prod(change.shape)) * dtype.itemsize
    return np.frombuffer(bytes([change.fill]) * count, dtype).reshape(change.shape)
