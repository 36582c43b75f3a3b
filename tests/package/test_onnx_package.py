from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.package.vectors import read_vectors, write_vectors
from moh_deploy.system.npz import Array, write_npz
from tests.handmade_package import MANIFEST, vectors, without_layers, write_package


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package", external_data=True).root


def bits(vectors: VectorSet) -> list[tuple[str, object, bytes]]:
    named = {**vectors.inputs, **vectors.outputs}
    arrays: list[tuple[str, Array]] = [*named.items()]
    arrays += [("gates", one) for one in vectors.gates]
    arrays += [("margins", one) for one in vectors.margins]
    return [(name, (one.dtype, one.shape), one.tobytes()) for name, one in arrays]


def test_package_opens_with_what_was_written(root: Path):
    package = OnnxPackage.open(root)
    assert replace(package.manifest, files={}) == MANIFEST
    assert sorted(package.manifest.files) == ["model.onnx", "model.onnx.data", "vectors.npz"]
    assert [bits(one) for one in package.vectors] == [bits(vectors())]
    assert package.gate_names == ("gates_0",)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "vectors.npz"])
def test_changed_file_is_refused_by_name(root: Path, name: str):
    content = bytearray((root / name).read_bytes())
    content[-1] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(PackageError, match=rf"{name} has changed since the package was written"):
        OnnxPackage.open(root)


def test_digests_are_not_checked_where_that_is_asked_for(root: Path):
    with (root / "model.onnx.data").open("ab") as file:
        file.write(b"x")
    assert OnnxPackage.open(root, check_digests=False).manifest.opset == 20


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "vectors.npz"])
def test_missing_file_is_refused_by_name(root: Path, name: str):
    (root / name).unlink()
    with pytest.raises(PackageError, match=f"{name} is missing"):
        OnnxPackage.open(root, check_digests=False)


@pytest.mark.parametrize("name", ["model.onnx", "vectors.npz"])
def test_unreadable_file_is_refused_by_name(root: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    opened = os.open

    def locked(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", locked)
    with pytest.raises(PackageError, match=rf"{name}: cannot be read: Permission denied"):
        OnnxPackage.open(root)


def test_directory_without_manifest_is_no_package(tmp_path: Path):
    with pytest.raises(PackageError, match=r"is not a package: it has no manifest\.json"):
        OnnxPackage.open(tmp_path)


def test_file_and_missing_directory_are_no_packages(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match="is a file, expected a package directory"):
        OnnxPackage.open(tmp_path / "file")
    with pytest.raises(PackageError, match="does not exist, expected a package directory"):
        OnnxPackage.open(tmp_path / "none")


def test_file_of_a_package_is_refused_naming_the_package(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    with pytest.raises(PackageError, match="is a file, expected a package directory") as caught:
        OnnxPackage.open(root / "model.onnx")
    assert caught.value.hint == f"It lies in one: name '{root}'."


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vectors.npz": "0"}, "files has no entry for model.onnx"),
        ({"model.onnx": "0", "vectors.npz": "0", "../secret": "0"}, "names '../secret'"),
        ({"model.onnx": "0", "vectors.npz": "0", "/etc/passwd": "0"}, "names '/etc/passwd'"),
    ],
)
def test_manifest_cannot_leave_out_a_file_or_point_outside(
    root: Path, files: dict[str, str], message: str
):
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps({**content, "files": files}))
    with pytest.raises(PackageError, match=message):
        OnnxPackage.open(root)


def test_vectors_keep_nan_inf_and_bfloat16(tmp_path: Path):
    odd = np.array([np.nan, np.inf, -0.0, 1e-40], np.float32).reshape(1, 1, 4)
    original = replace(
        vectors(),
        inputs={"x": odd.astype(ml_dtypes.bfloat16)},
        outputs={"y": odd},
        gates=(odd.astype(ml_dtypes.bfloat16),),
        margins=(np.array([[np.inf]]),),
    )
    write_vectors(tmp_path / "v.npz", [original, vectors(batch=3)])
    first, second = read_vectors(tmp_path / "v.npz", MANIFEST)
    assert bits(first) == bits(original)
    assert second.sizes == {"batch": 3, "seq": 3}


def test_more_than_ten_sets_keep_their_order(tmp_path: Path):
    sets = [vectors(batch=1 + i, with_layer=False) for i in range(12)]
    write_vectors(tmp_path / "v.npz", sets)
    back = read_vectors(tmp_path / "v.npz", without_layers())
    assert [one.sizes["batch"] for one in back] == list(range(1, 13))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x": 1}, "member 'x' is not named SET/KIND/NAME"),
        ({"a/inputs/x": 1}, "member 'a/inputs/x' is not named"),
        ({"1" * 5000 + "/inputs/x": 1}, f"member '{'1' * 300}' is not named"),
        ({"0/weights/x": 1}, "member '0/weights/x' is not named"),
        ({"1/inputs/x": 1}, r"numbered \[1\], expected 0, 1"),
        ({"0/inputs/z": 1}, r"set 0 has inputs \['z'\], the manifest has \['x'\]"),
        ({"0/inputs/x": 1, "0/outputs/y": 1}, r"set 0 has gates \[\], the manifest has \['0'\]"),
    ],
)
def test_vectors_that_do_not_fit_the_manifest_are_refused(
    tmp_path: Path, members: dict[str, int], message: str
):
    write_npz(tmp_path / "v.npz", {name: np.asarray(one) for name, one in members.items()})
    with pytest.raises(PackageError, match=message):
        read_vectors(tmp_path / "v.npz", MANIFEST)
