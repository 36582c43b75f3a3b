"""The graph of a model is read as protobuf reads it, but for the data of large weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moh_deploy.errors import PackageError
from moh_deploy.package import load_without_weights

LARGE, SMALL = np.ones((200, 200), np.float32), np.arange(3)


def model() -> onnx.ModelProto:
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
    expected = model()
    (tmp_path / "m.onnx").write_bytes(expected.SerializeToString())
    expected.graph.initializer[1].ClearField("raw_data")
    assert load_without_weights(tmp_path / "m.onnx") == expected


def test_parts_of_a_graph_are_put_together(tmp_path: Path):
    expected = model()
    more = onnx.GraphProto(output=[onnx.ValueInfoProto(name="z")])
    more.initializer.append(numpy_helper.from_array(LARGE, "last"))
    parts = (expected, onnx.ModelProto(graph=more))
    (tmp_path / "m.onnx").write_bytes(b"".join(part.SerializeToString() for part in parts))
    found = load_without_weights(tmp_path / "m.onnx").graph
    assert [value.name for value in found.output] == ["y", "z"]
    assert [one.name for one in found.initializer] == ["first", "large", "numbers", "last"]
    assert not any(one.raw_data for one in found.initializer if list(one.dims) == [200, 200])
    np.testing.assert_array_equal(numpy_helper.to_array(found.initializer[0]), SMALL)


def test_external_data_is_left_where_it_is(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="data", size_threshold=0)
    (tmp_path / "data").unlink()
    assert load_without_weights(path) == onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path, size: int):
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString()[:size])
    with pytest.raises(PackageError, match=r"m\.onnx cannot be read as an ONNX model"):
        load_without_weights(tmp_path / "m.onnx")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PackageError, match=r"m\.onnx does not exist"):
        load_without_weights(tmp_path / "m.onnx")
