"""Graphs as modules: what torch.export makes of them, and what a package keeps of a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import emit
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.load.checkpoint_file import load_onnx
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.frontend.trace import trace
from tests.frontend.load.onnx_graph.gated_layers import ATTENTION, write_layer
from tests.frontend.load.onnx_graph.onnx_models import written
from tests.frontend.rewritten import assert_equal, results
from tests.nightly import nightly, sampled


def traced(text: str, folder: Path) -> tuple[LoadedModel, torch.export.ExportedProgram]:
    loaded = load_onnx(written(text, folder / "model.onnx"))
    _, inputs = example_inputs(loaded, ExportConfig())
    return loaded, trace(loaded, inputs)


SIZES = """g (float[batch, seq, 6] x) => (float[a, b, c] y) <int64[1] two = {2}, int64 zero = {0}> {
    shape = Shape (x)
    first = Gather <axis = 0> (shape, zero)
    axes = Constant <value_ints = [0]> ()
    batch = Unsqueeze (first, axes)
    last = Constant <value_ints = [-1]> ()
    minus = Neg (two)
    end = Abs (minus)
    target = Concat <axis = 0> (batch, last, end)
    y = Reshape (x, target)
}"""


def test_sizes_stay_numbers_so_that_dimensions_stay_dynamic(tmp_path: Path) -> None:
    loaded, program = traced(SIZES, tmp_path)
    for batch, seq in ((2, 3), (5, 4), (3, 9)):
        x = torch.randn(batch, seq, 6)
        (got,) = program.module()(x)
        torch.testing.assert_close(got, loaded.callable()(x)[0])
    # No tensor was made of a size on the way.
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names <= {"aten.sym_size.int", "aten.reshape.default", "aten.view.default"} | {
        name for name in names if "assert" in name or name.startswith("<built-in")
    }


def test_branch_on_values_is_refused_by_name(tmp_path: Path) -> None:
    text = """g (float[n, 3] x, bool c) => (float[n, 3] y) {
        [choice] y = If (c) <
            then_branch = t () => (float[n, 3] a) { a = Relu (x) },
            else_branch = e () => (float[n, 3] b) { b = Exp (x) }
        >
    }"""
    with pytest.raises(ExportError, match=r"node 'choice' \(If\) chooses between two graphs"):
        traced(text, tmp_path)


def test_layers_are_named_after_the_modules_that_the_file_was_exported_from(tmp_path: Path) -> None:
    text = "g (float[n, 3] x) => (float[n, 3] y) { [node] y = Relu (x) }"
    model = onnx.load(written(text, tmp_path / "model.onnx"))
    model.graph.node[0].metadata_props.add(
        key="namespace", value=": Net/layers.0: Layer/layers.0.act: ReLU/relu: aten.relu.default"
    )
    onnx.save(model, tmp_path / "named.onnx")
    loaded = load_onnx(tmp_path / "named.onnx")
    program = trace(loaded, example_inputs(loaded, ExportConfig())[1])
    relu = next(node for node in program.graph.nodes if "relu" in node.name)
    assert [path for path, _ in relu.meta["nn_module_stack"].values()] == ["", "layers.0.act"]


def test_names_of_the_older_exporter_tell_the_module_too(tmp_path: Path) -> None:
    text = "g (float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }"
    model = onnx.load(written(text, tmp_path / "model.onnx"))
    model.graph.node[0].name = "/layers.0/act/Relu"
    onnx.save(model, tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    assert loaded.original.source.graph.nodes[0].scope == ("layers", "0", "act")


UNKNOWN = """g (float[batch, 3, 3] x, float[batch] z) => (float[batch] y, float[batch, 3, 3] v) {
    d = Det (x)
    y = Add (d, z)
    [inverse] v = com.microsoft.Inverse (x)
}"""


def test_operators_that_are_not_known_run_in_onnx_runtime_and_stay(tmp_path: Path) -> None:
    loaded, program = traced(UNKNOWN, tmp_path)
    x, z = torch.randn(4, 3, 3) + 3 * torch.eye(3), torch.randn(4)
    for got, expected in zip(program.module()(x, z), loaded.callable()(x, z), strict=True):
        torch.testing.assert_close(got, expected)
    model = emit(program, input_names=["x", "z"], opset=20)
    kept = {node.op_type: node for node in model.graph}
    assert kept["Det"].domain == ""
    assert (kept["Inverse"].domain, kept["Inverse"].name) == ("com.microsoft", "inverse")
    assert model.opset_imports["com.microsoft"] == 1
    assert "moh.stand_in" not in model.opset_imports


@nightly
def test_unknown_node_of_several_outputs_is_one_node_again(tmp_path: Path) -> None:
    text = """g (float[seq, batch, 2] x) => (float[seq, batch, 3] y, float[1, batch, 3] last) {
        squeezed, last = GRU <hidden_size = 3> (x, w, r, , , )
        one = Constant <value_ints = [1]> ()
        y = Squeeze (squeezed, one)
    }""".replace(", , , )", ")")
    from onnx import helper, numpy_helper, parser

    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    generator = np.random.default_rng(0)
    for name, shape in (("w", (1, 9, 2)), ("r", (1, 9, 3))):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    assert helper is not None
    onnx.save(model, tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    program = trace(loaded, example_inputs(loaded, ExportConfig())[1])
    x = torch.randn(5, 4, 2)
    for got, expected in zip(program.module()(x), loaded.callable()(x), strict=True):
        torch.testing.assert_close(got, expected)
    emitted = emit(program, input_names=["x"], opset=20)
    assert [node.op_type for node in emitted.graph].count("GRU") == 1


def test_unknown_node_whose_sizes_hang_on_values_is_refused_by_name(tmp_path: Path) -> None:
    text = """g (float[n] x, bool[n] c) => (float[m] y) { [pick] y = Compress (x, c) }"""
    with pytest.raises(ExportError, match=r"node 'pick' \(Compress\): the shape of what it ret"):
        traced(text, tmp_path)


@sampled(8)
@pytest.mark.parametrize("attention", ATTENTION)
def test_gated_attention_is_recognised_however_a_file_writes_it(
    attention: str, tmp_path: Path
) -> None:
    loaded = load_onnx(write_layer(tmp_path / "model.onnx", attention))
    # The lengths of GroupQueryAttention are constants of two samples.
    specs = ["x:[2,6,64]:float32"] if attention == "GroupQueryAttention" else []
    _, inputs = example_inputs(loaded, ExportConfig(), specs=specs)
    program = normalize(trace(loaded, inputs))
    rewrites = insert(program, recognize(program))
    assert [(rewrite.router.top_k, rewrite.replacement is not None) for rewrite in rewrites] == [
        (2, True)
    ]
    recording = record(program, rewrites, [item.value for item in inputs])
    assert recording.layers[0].disagreement is None
    committed = commit(program, rewrites).module()
    expected = results(loaded.callable(), inputs)
    assert_equal(results(committed, inputs), expected, ends_with=rewrites, within=1e-5)
