from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import PackageError
from moh_deploy.package import load_without_weights
from moh_deploy.package.onnx_outline import read_outline
from tests.handmade_package import model


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def saved(tmp_path: Path, found: onnx.ModelProto) -> Path:
    (tmp_path / "model.onnx").write_bytes(found.SerializeToString())
    return tmp_path / "model.onnx"


def test_name_that_is_not_utf8_is_refused_by_its_place(tmp_path: Path):
    content = model().SerializeToString().replace(b"gates_0", b"gates\xff0")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(PackageError, match=r"graph\.node\.output is b'gates\\xff0', which is not"):
        read_outline(tmp_path / "model.onnx")


def test_nesting_beyond_what_protobuf_reads_is_refused(tmp_path: Path):
    content = b""
    for tag in (*([0x32, 0x2A, 0x0A] * 40), 0x3A):  # graph of attribute of node of graph of model
        content = bytes([tag]) + varint(len(content)) + content
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(PackageError, match="nested deeper than 100 levels"):
        read_outline(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"no model", "cannot be read as an ONNX model: "),
        (b"\x3a\x7f", "a field of 127 bytes begins at byte 2, but what holds it ends at 2"),
        (b"\x08\xff", "it ends in the middle of a number"),
        (b"\x08" + b"\xff" * 11, "a number at byte 1 has no end"),
        (b"\x02\x00", "begins a field of number 0"),
        (b"\x0b", "of a kind that ONNX has not"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(PackageError, match=message):
        read_outline(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"dims": [8, 5]},
        {"dims": [2**62, 2**62]},
        {"dims": [-8, -4]},
        {"data_type": TensorProto.FLOAT16},
        {"data_type": TensorProto.STRING},
        {"data_type": 99},
        {"raw_data": b""},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["weight", "attribute"])
def test_tensor_that_has_not_the_bytes_of_its_shape_is_refused(
    tmp_path: Path, change: dict[str, Any], place: str
):
    """What computes with weights, as precision does, would fail at them much later."""
    found = model()
    tensor = found.graph.initializer[0]
    assert list(tensor.dims) == [8, 4]
    for name, value in change.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, name, value)
    if place == "attribute":
        found.graph.node.append(helper.make_node("Constant", [], ["made"], value=tensor))
        found.graph.initializer[0].CopyFrom(model().graph.initializer[0])
    with pytest.raises(PackageError, match=r"tensor 'weight' is .*\[.*\], but has \d+ bytes"):
        read_outline(saved(tmp_path, found))


@given(data=st.data())
def test_damage_is_refused_wherever_protobuf_refuses_it(tmp_path_factory, data: st.DataObject):
    """What passes here is read by protobuf later, in many places: it must not fail there."""
    content = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("outline") / "model.onnx"
    path.write_bytes(content)
    try:
        read_outline(path)
    except PackageError:
        return
    assert onnx.load_model_from_string(bytes(content)).IsInitialized()


def test_weights_are_not_read(tmp_path: Path):
    """A model's size is in its weights; the time of an outline is in its names."""
    found = model()
    found.graph.initializer.append(numpy_helper.from_array(np.ones(1 << 22), "large"))
    path = saved(tmp_path, found)

    def faults() -> int:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[7]) + int(fields[9])  # minor and major

    read_outline(path)
    before = faults()
    read_outline(path)
    assert (faults() - before) * 4096 < path.stat().st_size / 4


# The graph of a model is read as protobuf reads it, but for the data of large weights.


LARGE, SMALL = np.ones((200, 200), np.float32), np.arange(3)


def loaded_model() -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(SMALL, "first"),
        numpy_helper.from_array(LARGE, "large"),
        helper.make_tensor("numbers", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]),
    ]
    inner = helper.make_graph(
        [helper.make_node("Identity", ["large"], ["b"])],
        "then",
        [],
        [onnx.ValueInfoProto(name="b")],
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, ["n"]) for name in "xy")
    made = helper.make_model(helper.make_graph([node], "g", [x], [y], weights), producer_name="me")
    helper.set_model_props(made, {"key": "value"})
    return made


def test_all_but_the_data_of_large_weights_is_read(tmp_path: Path):
    expected = loaded_model()
    (tmp_path / "m.onnx").write_bytes(expected.SerializeToString())
    expected.graph.initializer[1].ClearField("raw_data")
    assert load_without_weights(tmp_path / "m.onnx") == expected


def test_parts_of_a_graph_are_put_together(tmp_path: Path):
    expected = loaded_model()
    more = onnx.GraphProto(output=[onnx.ValueInfoProto(name="z")])
    more.initializer.append(numpy_helper.from_array(LARGE, "last"))
    parts = (expected, onnx.ModelProto(graph=more))
    (tmp_path / "m.onnx").write_bytes(b"".join(part.SerializeToString() for part in parts))
    found = load_without_weights(tmp_path / "m.onnx").graph
    assert [value.name for value in found.output] == ["y", "z"]
    assert [weight.name for weight in found.initializer] == ["first", "large", "numbers", "last"]
    assert not any(
        weight.raw_data for weight in found.initializer if list(weight.dims) == [200, 200]
    )
    np.testing.assert_array_equal(numpy_helper.to_array(found.initializer[0]), SMALL)


def test_external_data_is_left_where_it_is(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(loaded_model(), path, save_as_external_data=True, location="data", size_threshold=0)
    (tmp_path / "data").unlink()
    assert load_without_weights(path) == onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path, size: int):
    (tmp_path / "m.onnx").write_bytes(loaded_model().SerializeToString()[:size])
    with pytest.raises(PackageError, match=r"m\.onnx cannot be read as an ONNX model"):
        load_without_weights(tmp_path / "m.onnx")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PackageError, match=r"m\.onnx does not exist"):
        load_without_weights(tmp_path / "m.onnx")
