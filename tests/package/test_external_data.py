from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.bounded_file import sha256_of
from tests.cli.run_cli import run_python
from tests.handmade_package import model, write_package
from tests.nightly import nightly, sampled
from tests.repaired_package import change_model, replace_file, rewrite_manifest

DATA = np.zeros(64, np.float32).tobytes()


def outside(location: str, **entries: object) -> onnx.TensorProto:
    tensor = TensorProto(name="outside", dims=[64], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(tensor: onnx.TensorProto, name: str = "made") -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=tensor)


def in_initializer(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    found.graph.initializer.append(tensor)


def in_sparse_initializer(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    indices = numpy_helper.from_array(np.arange(64), "indices")
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [64]))


def in_constant(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    found.graph.node.append(constant(tensor))


def in_list_of_tensors(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Other", [], ["made"], domain="strange")
    node.attribute.append(helper.make_attribute("tensors", [tensor]))
    found.graph.node.append(node)


def in_branch(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [64])
    inner = helper.make_graph([constant(tensor, "inner")], "branch", [], [value])
    twice = helper.make_graph([], "branch", [], [value], [tensor])
    nested = helper.make_node("If", ["c"], ["inner"], then_branch=inner, else_branch=twice)
    outer = helper.make_graph([nested], "outer", [], [value])
    node = helper.make_node("If", ["c"], ["made"], then_branch=outer, else_branch=outer)
    found.graph.node.append(node)


def in_function(found: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    found.functions[0].node.insert(0, constant(tensor))


PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], None]] = {
    name.removeprefix("in_"): place
    for name, place in list(globals().items())
    if name.startswith("in_")
}


def list_data(root: Path) -> None:
    digest = sha256_of(root / "model.onnx.data")
    rewrite_manifest(root, lambda content: content["files"].update({"model.onnx.data": digest}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


@pytest.mark.parametrize("place", PLACES)
def test_data_in_a_file_that_is_not_listed_is_refused(root: Path, place: str):
    (root / "model.onnx.data").write_bytes(DATA)
    change_model(root, lambda found: PLACES[place](found, outside("model.onnx.data")))
    message = r"tensor 'outside' in model\.onnx\.data, which the manifest does not list"
    for check_digests in (True, False):
        with pytest.raises(PackageError, match=message):
            OnnxPackage.open(root, check_digests=check_digests)
    list_data(root)
    OnnxPackage.open(root)


@sampled(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "./model.onnx.data", "vectors.npz"]
)
def test_data_elsewhere_is_refused_wherever_it_is_named(root: Path, place: str, location: str):
    change_model(root, lambda found: PLACES[place](found, outside(location)))
    message = f"tensor 'outside' is in '{location}', expected 'model.onnx.data'"
    with pytest.raises(PackageError, match=message):
        OnnxPackage.open(root)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 257), (0, 128), (1, 256), (257, 0), (-1, 4), ("x", 4), ("²", 1), (0, "9" * 5000)],
)
def test_data_beyond_the_end_of_its_file_is_refused(root: Path, offset: object, length: object):
    (root / "model.onnx.data").write_bytes(DATA)
    list_data(root)
    tensor = outside("model.onnx.data", offset=offset, length=length)
    change_model(root, lambda found: found.graph.initializer.append(tensor))
    with pytest.raises(PackageError, match=r"tensor 'outside' is .* bytes from byte .* has 256"):
        OnnxPackage.open(root)


@nightly
@pytest.mark.usefixtures("warm_processes")
def test_every_command_that_opens_a_package_refuses_such_data(tmp_path: Path):
    """The whole story: weights beside the model, unlisted, changed after they were written."""
    root = write_package(tmp_path / "package", external_data=True).root
    rewrite_manifest(root, lambda content: content["files"].pop("model.onnx.data"))
    for command in ("inspect", "verify", "probe", "bisect", "tune"):
        ended = run_python("-m", "moh_deploy", command, str(root))
        assert ended.exit_code == 5, command
        assert "which the manifest does not list" in ended.err


def test_model_that_lost_its_place_for_weights_twice_is_seen(root: Path):
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
    replace_file(root, "model.onnx", content)
    with pytest.raises(PackageError, match="is in '/etc/passwd'"):
        OnnxPackage.open(root)


def _varint(number: int) -> bytes:
    head = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(byte | 0x80 for byte in head[:-1]), head[-1]])
