import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.package.vectors import read_vectors, write_vectors
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import Array, write_npz
from tests.cli.run_cli import run_python
from tests.handmade_package import MANIFEST, model, vectors, without_layers, write_package
from tests.nightly import nightly, sampled
from tests.repaired_package import change_model, replace_file, rewrite_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package", external_data=True).root


def bits(vectors: VectorSet) -> list[tuple[str, object, bytes]]:
    named = {**vectors.inputs, **vectors.outputs}
    arrays: list[tuple[str, Array]] = [*named.items()]
    arrays += [("gates", run) for run in vectors.gates]
    arrays += [("margins", run) for run in vectors.margins]
    return [(name, (item.dtype, item.shape), item.tobytes()) for name, item in arrays]


def test_package_opens_with_what_was_written(root: Path):
    package = OnnxPackage.open(root)
    assert replace(package.manifest, files={}) == MANIFEST
    assert sorted(package.manifest.files) == ["model.onnx", "model.onnx.data", "vectors.npz"]
    assert [bits(run) for run in package.vectors] == [bits(vectors())]
    assert package.gate_names == ("gates_0",)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "vectors.npz"])
def test_changed_or_missing_file_is_refused_by_name(root: Path, name: str):
    content = bytearray((root / name).read_bytes())
    content[-1] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(PackageError, match=rf"{name} has changed since the package was written"):
        OnnxPackage.open(root)
    if name == "model.onnx.data":
        assert OnnxPackage.open(root, check_digests=False).manifest.opset == 20
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


def test_what_is_no_package_is_refused(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    (tmp_path / "file").touch()
    for place, message in {
        "": r"is not a package: it has no manifest\.json",
        "file": "is a file, expected a package directory",
        "none": "does not exist, expected a package directory",
        "package/model.onnx": f"is a file, expected .*\n.*hint: It lies in one: name '{root}'",
    }.items():
        with pytest.raises(PackageError, match=message):
            OnnxPackage.open(tmp_path / place)


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
    assert [item.sizes["batch"] for item in back] == list(range(1, 13))


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
    write_npz(tmp_path / "v.npz", {name: np.asarray(item) for name, item in members.items()})
    with pytest.raises(PackageError, match=message):
        read_vectors(tmp_path / "v.npz", MANIFEST)


DATA = np.zeros(64, np.float32).tobytes()


def outside(location: str, **entries: object) -> onnx.TensorProto:
    tensor = TensorProto(name="outside", dims=[64], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(tensor: onnx.TensorProto, name: str = "made") -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=tensor)


def in_branch(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [64])
    inner = helper.make_graph([constant(tensor, "inner")], "branch", [], [value])
    twice = helper.make_graph([], "branch", [], [value], [tensor])
    nested = helper.make_node("If", ["c"], ["inner"], then_branch=inner, else_branch=twice)
    outer = helper.make_graph([nested], "outer", [], [value])
    node = helper.make_node("If", ["c"], ["made"], then_branch=outer, else_branch=outer)
    found.graph.node.append(node)


def sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(64), "i"), [64])


def with_list(tensor: onnx.TensorProto) -> onnx.NodeProto:
    node = helper.make_node("Other", [], ["made"], domain="strange")
    node.attribute.append(helper.make_attribute("tensors", [tensor]))
    return node


PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], None]] = {
    "initializer": lambda found, tensor: found.graph.initializer.append(tensor),
    "sparse": lambda found, tensor: found.graph.sparse_initializer.append(sparse(tensor)),
    "constant": lambda found, tensor: found.graph.node.append(constant(tensor)),
    "list of tensors": lambda found, tensor: found.graph.node.append(with_list(tensor)),
    "branch": in_branch,
    "function": lambda found, tensor: found.functions[0].node.insert(0, constant(tensor)),
}


def list_data(folder: Path) -> None:
    digest = sha256_of(folder / "model.onnx.data")
    rewrite_manifest(folder, lambda content: content["files"].update({"model.onnx.data": digest}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


@pytest.mark.parametrize("place", PLACES)
def test_data_in_a_file_that_is_not_listed_is_refused(folder: Path, place: str):
    (folder / "model.onnx.data").write_bytes(DATA)
    change_model(folder, lambda found: PLACES[place](found, outside("model.onnx.data")))
    message = r"tensor 'outside' in model\.onnx\.data, which the manifest does not list"
    for check_digests in (True, False):
        with pytest.raises(PackageError, match=message):
            OnnxPackage.open(folder, check_digests=check_digests)
    list_data(folder)
    OnnxPackage.open(folder)


@sampled(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "./model.onnx.data", "vectors.npz"]
)
def test_data_elsewhere_is_refused_wherever_it_is_named(folder: Path, place: str, location: str):
    change_model(folder, lambda found: PLACES[place](found, outside(location)))
    message = f"tensor 'outside' is in '{location}', expected 'model.onnx.data'"
    with pytest.raises(PackageError, match=message):
        OnnxPackage.open(folder)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 257), (0, 128), (1, 256), (257, 0), (-1, 4), ("x", 4), ("²", 1), (0, "9" * 5000)],
)
def test_data_beyond_the_end_of_its_file_is_refused(folder: Path, offset: object, length: object):
    (folder / "model.onnx.data").write_bytes(DATA)
    list_data(folder)
    tensor = outside("model.onnx.data", offset=offset, length=length)
    change_model(folder, lambda found: found.graph.initializer.append(tensor))
    with pytest.raises(PackageError, match=r"tensor 'outside' is .* bytes from byte .* has 256"):
        OnnxPackage.open(folder)


@nightly
@pytest.mark.usefixtures("warm_processes")
def test_every_command_that_opens_a_package_refuses_such_data(tmp_path: Path):
    """The whole story: weights beside the model, unlisted, changed after they were written."""
    folder = write_package(tmp_path / "package", external_data=True).root
    rewrite_manifest(folder, lambda content: content["files"].pop("model.onnx.data"))
    for command in ("inspect", "verify", "probe", "bisect", "tune"):
        ended = run_python("-m", "moh_deploy", command, str(folder))
        assert ended.exit_code == 5, command
        assert "which the manifest does not list" in ended.err


def test_model_that_lost_its_place_for_weights_twice_is_seen(folder: Path):
    """protobuf merges a message that stands twice: neither half alone is external."""
    tensor = outside("/etc/passwd")
    place = TensorProto()
    place.external_data.extend(tensor.external_data)
    tensor.ClearField("external_data")
    tag = bytes(
        [helper.make_attribute("value", tensor).DESCRIPTOR.fields_by_name["t"].number << 3 | 2]
    )
    attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
    raw = attribute.SerializeToString()
    for half in (tensor, place):
        content = half.SerializeToString()
        raw += tag + bytes([len(content)]) + content
    merged = onnx.AttributeProto.FromString(raw)
    assert merged.t.external_data[0].value == "/etc/passwd"
    node = onnx.NodeProto(op_type="Constant", output=["made"]).SerializeToString()
    node += bytes([5 << 3 | 2, len(raw)]) + raw
    graph = model().graph.SerializeToString() + bytes([1 << 3 | 2]) + _varint(len(node)) + node
    whole = model()
    whole.ClearField("graph")
    content = whole.SerializeToString() + bytes([7 << 3 | 2]) + _varint(len(graph)) + graph
    replace_file(folder, "model.onnx", content)
    with pytest.raises(PackageError, match="is in '/etc/passwd'"):
        OnnxPackage.open(folder)


def _varint(number: int) -> bytes:
    head = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(byte | 0x80 for byte in head[:-1]), head[-1]])
