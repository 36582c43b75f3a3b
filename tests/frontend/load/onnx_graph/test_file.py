"""What is refused of an ONNX file, and what is read of it."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moh_deploy.errors import BackendError, CheckpointError, ExportError
from moh_deploy.frontend.load.checkpoint_file import load_onnx
from moh_deploy.frontend.load.fileform import detect_form
from moh_deploy.frontend.load.onnx_graph.file import OnnxInput, read_onnx
from tests.frontend.load.onnx_graph.onnx_models import finished, written

ADD = "g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Add (x, w) }"


def with_external_data(folder: Path, location: str = "weights.bin") -> Path:
    """A model of one weight of 400 kB, which lies in another file."""
    weight = numpy_helper.from_array(np.ones((100, 1000), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 100])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 1000])],
        [weight],
    )
    path = folder / "model.onnx"
    onnx.save(finished(graph), path, save_as_external_data=True, location=location)
    return path


def test_form_is_told_by_content(tmp_path: Path) -> None:
    written(ADD, tmp_path / "model.bin")
    assert detect_form(tmp_path / "model.bin") == "onnx"


def test_interface_opset_and_metadata_are_read(tmp_path: Path) -> None:
    path = written(ADD, tmp_path / "model.onnx", opset=18)
    model = onnx.load(path)
    model.metadata_props.add(key="author", value="a")
    onnx.save(model, path)
    source = read_onnx(path)
    assert source.inputs == (OnnxInput("x", "float32", ("N", 3)),)
    assert (source.outputs, source.opset, source.metadata) == (("y",), 18, {"author": "a"})


def test_constants_are_folded_and_what_nobody_reads_is_dropped(tmp_path: Path) -> None:
    path = written(
        """g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
            half = Constant <value_float = 0.5> ()
            scaled = Mul (w, half)
            unread = Exp (x)
            y = Add (x, scaled)
        }""",
        tmp_path / "model.onnx",
    )
    graph = read_onnx(path).graph
    assert [node.op_type for node in graph.nodes] == ["Add"]
    np.testing.assert_array_equal(graph.weights["scaled"].numpy(), np.float32([0.5, 1, 1.5]))


def test_random_numbers_are_not_folded(tmp_path: Path) -> None:
    path = written(
        "g (float[3] x) => (float[3] y) { r = RandomNormal <shape = [3]> () y = Add (x, r) }",
        tmp_path / "model.onnx",
    )
    with pytest.raises(ExportError, match="RandomNormal"):
        read_onnx(path)


def test_branch_of_a_known_condition_is_taken(tmp_path: Path) -> None:
    path = written(
        """g (float[N, 3] x) => (float[N, 3] y) <bool c = {1}> {
            y = If (c) <
                then_branch = t () => (float[N, 3] a) { a = Relu (x) },
                else_branch = e () => (float[N, 3] b) { b = Exp (x) }
            >
        }""",
        tmp_path / "model.onnx",
    )
    assert [node.op_type for node in read_onnx(path).graph.nodes] == ["Relu"]


def test_local_functions_are_put_in_their_place(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        g (float[N, 3] x) => (float[N, 3] y) { y = mine.Twice (x) }
        <domain: "mine", opset_import: ["" : 20]> Twice (a) => (b) { b = Add (a, a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    assert [node.op_type for node in read_onnx(tmp_path / "model.onnx").graph.nodes] == ["Add"]


def test_external_data_is_read_and_part_of_the_digest(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    source = read_onnx(path)
    assert source.graph.weights["w"].numpy().shape == (100, 1000)
    before = source.sha256
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert read_onnx(path).sha256 != before


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin: no such file; model\.onnx has .*'w'"):
        read_onnx(path)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"400000 bytes from byte 0 .* which has 399999"):
        read_onnx(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    path = with_external_data(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"is in '{location}', expected a file beside"):
        read_onnx(path)


def test_broken_file_is_refused(tmp_path: Path) -> None:
    path = written(ADD, tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be read as an ONNX model"):
        read_onnx(path)


@pytest.mark.parametrize(("opset", "why"), [(25, "newer than what is known here"), (9, "too old")])
def test_opset_out_of_range_is_refused(tmp_path: Path, opset: int, why: str) -> None:
    path = written(ADD, tmp_path / "model.onnx", opset=opset)
    with pytest.raises(CheckpointError, match=f"operator set {opset}, which is {why}"):
        read_onnx(path)


def test_nodes_that_no_traced_program_holds_are_all_named_with_their_count(tmp_path: Path) -> None:
    path = written(
        """g (float[N, 3] x) => (float[N, 3] y) {
            [a] a = RandomNormalLike (x)
            [b] b = RandomNormalLike (a)
            [c] c = Bernoulli (b)
            y = Add (b, c)
        }""",
        tmp_path / "model.onnx",
    )
    with pytest.raises(ExportError, match=re.escape("RandomNormalLike (2x: a, b); Bernoulli (1x")):
        read_onnx(path)


def test_loop_is_refused_by_name(tmp_path: Path) -> None:
    path = written(
        """g (float[3] x, int64 n, bool c) => (float[3] y) {
            [the_loop] y = Loop (n, c, x) <
                body = b (int64 i, bool ci, float[3] a) => (bool co, float[3] o) {
                    co = Identity (ci)
                    o = Add (a, a)
                }
            >
        }""",
        tmp_path / "model.onnx",
    )
    with pytest.raises(ExportError, match=r"Loop \(1x: the_loop\)"):
        read_onnx(path)


def test_what_onnx_runtime_cannot_load_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = written(
        "g (float[2, 3] x, float[4, 5] z) => (float[a, b] y) { y = MatMul (x, z) }",
        tmp_path / "model.onnx",
    )
    with pytest.raises(BackendError, match="ONNX Runtime failed while loading"):
        load_onnx(path)


def test_input_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    path = written(
        "g (seq(float[3]) s) => (float[3] y) { i = Constant <value_int = 0> ()"
        " y = SequenceAt (s, i) }",
        tmp_path / "model.onnx",
    )
    with pytest.raises(CheckpointError, match="input 's' is Sequence"):
        read_onnx(path)
