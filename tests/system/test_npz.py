import zipfile
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import map_npz, read_npy, read_npz, write_npz
from tests.cli.run_cli import run_python
from tests.nightly import nightly, sampled

DTYPES = [np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]


@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write_npz(path, {"x": array})
    for read in (read_npz, map_npz):
        back = read(path, error=ConfigError)["x"]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


def test_every_bfloat16_bit_pattern_survives(tmp_path: Path):
    patterns = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    write_npz(tmp_path / "a.npz", {"x": patterns})
    back = read_npz(tmp_path / "a.npz", error=ConfigError)["x"]
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back.view(np.uint16), patterns.view(np.uint16))


def test_numpy_and_we_read_each_other(tmp_path: Path):
    x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", x=x.view("V2"), y=np.arange(3))
    back = read_npz(tmp_path / "a.npz", error=ConfigError)
    assert (back["x"].tolist(), back["y"].tolist()) == ([1.5, -2.0], [0, 1, 2])
    write_npz(tmp_path / "a.npz", {"file": np.arange(3), "a/b.c": np.ones(2)})
    with np.load(tmp_path / "a.npz") as found:
        assert (found["file"].tolist(), found["a/b.c"].tolist()) == ([0, 1, 2], [1, 1])


def test_order_of_members_is_kept_and_equal_arrays_give_equal_files(tmp_path: Path):
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, {name: np.arange(7) for name in "zax"})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert list(read_npz(tmp_path / "a.npz", error=ConfigError)) == ["z", "a", "x"]


class _Payload:
    ran = False

    def __reduce__(self):
        return setattr, (_Payload, "ran", True)


def test_object_arrays_are_refused_and_nothing_in_them_runs(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.array([_Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"a\.npz cannot be read as an npz file.*Object arrays"):
        read_npz(tmp_path / "a.npz", error=ConfigError)
    assert not _Payload.ran


def test_file_of_one_array_is_refused_saying_how_to_name_it(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="cannot be read as an npz file") as caught:
        read_npz(tmp_path / "a.npy", error=ConfigError)
    assert "numpy.savez('a.npz', NAME=numpy.load('a.npy'))" in str(caught.value.hint)


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.npz does not exist"):
        read_npz(tmp_path / "none.npz", error=ConfigError)


@pytest.mark.parametrize("keep", [0, 4, 10, 200])
def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path, keep: int):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(100)})
    content = path.read_bytes()[:keep]
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for damaged in (content, b"no zip file" + content, (tmp_path / "objects.npz").read_bytes()):
        path.write_bytes(damaged)
        for read in (read_npz, map_npz):
            with pytest.raises(ConfigError, match="cannot be read as an npz file"):
                read(path, error=ConfigError)


def test_what_is_mapped_is_what_is_read(tmp_path: Path):
    arrays = {
        "rows": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "a/b.c": np.array([1.5], ml_dtypes.bfloat16).view("V2"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read, mapped = (item(tmp_path / "a.npz", error=ConfigError) for item in (read_npz, map_npz))
        assert list(mapped) == list(arrays)
        for name, array in mapped.items():
            np.testing.assert_array_equal(array, read[name], strict=True)
    np.savez(tmp_path / "a.npz", **arrays)
    assert isinstance(map_npz(tmp_path / "a.npz", error=ConfigError)["rows"].base, np.memmap)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode()
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


def described(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "huge": (npy(described(f"({2**40},)"), b"1234"), "4398046511104 bytes"),
    "beyond 64 bits": (npy(described(f"({2**70},)"), b"1234"), "bytes, but has 4"),
    "nothing of much": (npy(described(f"(0, {2**70})")), "0 bytes, but has 0"),
    "negative": (npy(described("(-1, -4)"), bytes(16)), "16 bytes, but has 16"),
    "truth": (npy(described("(True,)"), bytes(4)), "4 bytes, but has 4"),
    "short": (npy(described("(3,)"), bytes(8)), "12 bytes, but has 8"),
    "long": (npy(described("(3,)"), bytes(16)), "12 bytes, but has 16"),
    "axes": (npy(described(f"({'1, ' * 40})"), bytes(4)), "4 bytes, but has 4"),
    "records": (npy(described("(1,)", "[('a', '<f4')]"), bytes(4)), "expected numbers, truth"),
    "records of nothing": (npy(described("(9,)", "'V0'")), "expected numbers, truth"),
    "text of nothing": (npy(described(f"({2**60},)", "'U0'")), "expected numbers, truth"),
    "no characters": (npy(described("(1,)", "'<U1'"), b"\1\1\1\1"), "that are no characters"),
    "half a pair": (npy(described("(1,)", "'>U1'"), b"\0\0\xd8\0"), "that are no characters"),
    "dates": (npy(described("(1,)", "'M8[s]'"), bytes(8)), "expected numbers, truth"),
    "unknown dtype": (
        npy(described("(1,)", "'x9'"), bytes(8)),
        "header of an array cannot be read",
    ),
    "nested": (npy("(" * 5000), "header of an array cannot be read"),
    "digits": (npy(described("9" * 5000)), "header of an array cannot be read"),
    "endless header": (
        npy("", version=b"\x02\x00")[:8] + b"\xff" * 4,
        "header .* 4294967295 bytes",
    ),
    "version": (npy(described("(1,)"), bytes(4), b"\x03\x00"), "version"),
    "no npy": (b"hello, this is no array", "magic string"),
}


@sampled(4)
@pytest.mark.parametrize("name", HOSTILE)
def test_array_that_is_not_what_it_declares_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str
):
    content, message = HOSTILE[name]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("x.npy", content)
        for read in (read_npz, map_npz):
            with pytest.raises(ConfigError, match=rf"cannot be read as an npz file: .*{message}"):
                read(tmp_path / "a.npz", error=ConfigError)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"cannot be read as an npy file: .*{message}"):
        read_npy(tmp_path / "a.npy", error=ConfigError)


_LIMITED = """
import resource, sys
from pathlib import Path
from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import read_npz
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    read_npz(Path(sys.argv[1]), error=ConfigError)
except ConfigError as error:
    print(error.message)
"""


@nightly
def test_bomb_takes_no_memory(tmp_path: Path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(described(f"({2**29},)")))
        for _ in range(2**7):
            member.write(bytes(2**24))
    ended = run_python("-c", _LIMITED, str(tmp_path / "a.npz"))
    assert (ended.exit_code, ended.err) == (0, "")
    assert "its members hold 2147483" in ended.out


def test_names_that_differ_in_their_suffix_only_are_one(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("x", "x.npy"):
            archive.writestr(name, npy(described("(1,)"), bytes(4)))
    with pytest.raises(ConfigError, match="member 'x' is there twice"):
        read_npz(tmp_path / "a.npz", error=ConfigError)


@sampled(2)
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_of_several_chunks_comes_back(tmp_path: Path, order: Literal["C", "F"]):
    array = np.arange(2**19 + 37, dtype=np.float64).reshape(3, -1, order=order)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz", error=ConfigError)["x"], array)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", error=ConfigError), array)


def test_numbers_of_the_other_byte_order_come_as_this_machine_has_them(tmp_path: Path):
    swapped = np.arange(6.0).reshape(2, 3).astype(np.dtype(np.float32).newbyteorder())
    np.savez(tmp_path / "x.npz", x=swapped)
    found = read_npz(tmp_path / "x.npz", error=ConfigError)["x"]
    assert found.dtype.isnative
    assert found.tolist() == swapped.tolist()
