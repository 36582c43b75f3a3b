from __future__ import annotations

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moh_deploy.errors import ConfigError
from moh_deploy.npz import map_npz, read_npz, write_npz

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


def test_what_numpy_saves_is_read_bfloat16_included(tmp_path: Path):
    x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", x=x.view("V2"), y=np.arange(3))
    back = read_npz(tmp_path / "a.npz", error=ConfigError)
    assert back["x"].tolist() == [1.5, -2.0]
    assert back["y"].tolist() == [0, 1, 2]


def test_numpy_reads_what_is_written(tmp_path: Path):
    write_npz(tmp_path / "a.npz", {"file": np.arange(3), "a/b.c": np.ones(2)})
    with np.load(tmp_path / "a.npz") as back:
        assert back["file"].tolist() == [0, 1, 2]
        assert back["a/b.c"].tolist() == [1, 1]


def test_order_of_members_is_kept(tmp_path: Path):
    write_npz(tmp_path / "a.npz", {name: np.zeros(1) for name in "zax"})
    assert list(read_npz(tmp_path / "a.npz", error=ConfigError)) == ["z", "a", "x"]


def test_equal_arrays_give_equal_files(tmp_path: Path):
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, {"x": np.arange(7)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


class _Payload:
    ran = False

    def __reduce__(self):
        return setattr, (_Payload, "ran", True)


def test_object_arrays_are_refused_and_nothing_in_them_runs(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.array([_Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"a\.npz cannot be read as an npz file.*Object arrays"):
        read_npz(tmp_path / "a.npz", error=ConfigError)
    assert not _Payload.ran


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.npz does not exist"):
        read_npz(tmp_path / "none.npz", error=ConfigError)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_file_is_refused(tmp_path: Path, keep: int):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="cannot be read as an npz file"):
        read_npz(path, error=ConfigError)


def test_member_that_is_no_array_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"hello, this is no array")
    with pytest.raises(ConfigError, match="cannot be read as an npz file"):
        read_npz(tmp_path / "a.npz", error=ConfigError)


def test_what_is_mapped_is_what_is_read(tmp_path: Path):
    arrays = {
        "rows": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "a/b.c": np.array([1.5], ml_dtypes.bfloat16).view("V2"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read, mapped = (one(tmp_path / "a.npz", error=ConfigError) for one in (read_npz, map_npz))
        assert list(mapped) == list(arrays)
        for name, array in mapped.items():
            np.testing.assert_array_equal(array, read[name], strict=True)
    np.savez(tmp_path / "a.npz", **arrays)
    assert isinstance(map_npz(tmp_path / "a.npz", error=ConfigError)["rows"].base, np.memmap)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04"])
def test_what_cannot_be_mapped_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as an npz file"):
        map_npz(tmp_path / "a.npz", error=ConfigError)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ConfigError, match="cannot be read as an npz file"):
        map_npz(tmp_path / "objects.npz", error=ConfigError)
