"""A layer whose gates no input changes goes through every command."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import moh_deploy
from moh_deploy.errors import ValidationError
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.graph.forced_gates import unforceable_layers, why_not_fixed
from moh_deploy.package import OnnxPackage
from tests.exporting import export, prove_in_this_process
from tests.nightly import nightly, sampled
from tests.repaired_package import change_model
from tests.zoo import ZOO

MODEL = next(item for item in ZOO if item.name == "object_queries")


@pytest.fixture(scope="module", params=["batch", "fixed"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of learned queries on themselves, and one that reads the input."""
    root = tmp_path_factory.mktemp("constant") / "package"
    dynamic = ("x:0=batch,1=seq",) if request.param == "batch" else ()
    with pytest.MonkeyPatch.context() as patch:
        prove_in_this_process(patch)
        inputs = {item.name: to_numpy(item.value) for item in MODEL.inputs()}
        export(MODEL.build(), root, inputs=inputs, dynamic=dynamic)
    return root


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package, tmp_path / "copy")


@sampled(2)
def test_gates_are_weights_that_each_layer_reads(package: Path):
    opened = OnnxPackage.open(package)
    for layer in opened.manifest.layers:
        assert (layer.router, layer.router_replaced, layer.replaced) == ("constant", False, True)
        assert layer.reason is None
    graph = onnx.load(package / "model.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"MoHRouter", "TopK", "Softmax"}
    assert unforceable_layers(graph, opened.manifest.layers) == []


def test_what_is_skipped_at_export_is_said(package: Path):
    report = moh_deploy.inspect(package, kernels="off")
    said = [line for line in report.document().findings if "no input changes its gates" in line]
    assert len(said) == 2
    for layer, gates, line in zip(
        report.manifest.layers, OnnxPackage.open(package).vectors[0].gates, said, strict=True
    ):
        closed = np.flatnonzero((gates == 0).all((0, 1))).tolist()
        assert list(layer.closed_heads) == closed
        assert f"{100 * float((gates == 0).mean()):.1f} % of the (query, head) pairs" in line
    assert any(layer.closed_heads for layer in report.manifest.layers)


def test_right_package_is_equal_and_what_can_be_probed_passes(package: Path):
    moh_deploy.verify(package, kernels="off").raise_if_unequal()
    dims = OnnxPackage.open(package).manifest.dims
    report = moh_deploy.probe(package, kernels="off", longest=dict.fromkeys(dims, 9))
    assert not [result for result in report.results if result.status == "failed"]
    routing = [result for result in report.results if result.kind == "routing"]
    assert {item.detail for item in routing} == {"no input changes the gates: there are no logits."}


@sampled(2)
@pytest.mark.parametrize("index", [0, 1])
def test_other_constants_are_refused_as_a_fault_of_the_gates(copy: Path, index: int):
    layer = OnnxPackage.open(copy).manifest.layers[index]

    def turn(model: onnx.ModelProto) -> None:
        """Give each head the gates of another one."""
        names = [layer.gates, *(n.input[0] for n in model.graph.node if layer.gates in n.output)]
        (weight,) = (item for item in model.graph.initializer if item.name in names)
        gates = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(gates[..., ::-1].copy(), weight.name))

    change_model(copy, turn)
    report = moh_deploy.verify(copy, kernels="off")
    with pytest.raises(
        ValidationError, match=f"the error is in the router of layer '{layer.path}'"
    ):
        report.raise_if_unequal()


@sampled(2)
def test_package_of_constant_gates_is_lowered(package: Path, tmp_path: Path):
    moh_deploy.precision(package, to="float16", output=tmp_path / "half")
    moh_deploy.verify(tmp_path / "half", kernels="off").raise_if_unequal()


@nightly
def test_layer_that_reads_constants_alone_is_timed(copy: Path):
    report = moh_deploy.tune(copy)
    assert len(report.layers) == len(OnnxPackage.open(copy).manifest.layers)


def test_routing_can_be_fixed_where_gates_are_repeated_for_each_sample(package: Path):
    opened = OnnxPackage.open(package)
    why = why_not_fixed(onnx.load(package / "model.onnx").graph, opened.manifest.layers)
    assert why == (None if opened.manifest.dims else "no layer computes its gates")
