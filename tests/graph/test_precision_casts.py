"""Raising undoes lowering: what comes out is lowered again to the same graph."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.float32_form import Float32Form, lower_again
from moh_deploy.graph.load_model import infer_types
from moh_deploy.graph.precision_casts import Raised, lower_precision, narrow_caches, raise_precision
from moh_deploy.graph.precision_policy import LowType, plan_precision
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import CacheBuffer, CachesInPlace, OnnxPackage
from tests.graph.models import model, node, value
from tests.graph.test_precision_policy import graph, perceptron, run
from tests.nightly import nightly
from tests.two_layers import write_two_layers

LOW_INTERFACE = """
low (float16[n, 2] x) => (float16[n, 2] y)
<float16[2] bias = {15360, 16384}>
{ s = Add(x, bias)
  c = Constant<value = float16[1] {16896}>()
  y = Mul(s, c) }
"""


def text_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def parts_of(model: ir.Model) -> list[bytes]:
    """Return nodes, weights and functions, in an order that says nothing."""
    proto = ir.to_proto(model)
    parts = [*proto.graph.node, *proto.graph.initializer, *proto.functions]
    return sorted(part.SerializeToString(deterministic=True) for part in parts)


def dtypes(model: ir.Model) -> set[str]:
    values = [value for node in model.graph for value in node.outputs]
    return {str(value.dtype.numpy()) for value in (*values, *model.graph.initializers.values())}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_raised_graph_is_in_float32_and_lowered_again_as_it_was(low: LowType):
    model = perceptron()
    lower_precision(model, plan_precision(model, low, {}, gates=frozenset()))
    before = text_of(model)
    raised = raise_precision(model, low)
    assert dtypes(model) == {"float32"}
    assert raised.low == {"h", "r", "y"}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for _ in range(2):  # The raised model stays as it is.
        assert text_of(lower_again(model, low, raised.low, {})) == before
        assert dtypes(model) == {"float32"}


def test_float32_weights_are_taken_back_if_they_round_to_those_in_the_graph():
    exact, model = perceptron(), perceptron()
    weights = {name: v.const_value for name, v in exact.graph.initializers.items()}
    changed = weights["second"].numpy() * np.float32(1.1)
    lower_precision(model, plan_precision(model, "float16", {}, gates=frozenset()))
    given = {**weights, "second": ir.tensor(changed)}
    raised = raise_precision(model, "float16", given)
    assert (raised.given, raised.foreign) == (("first",), ("second",))
    first, second = (model.graph.initializers[name].const_value.numpy() for name in given)
    np.testing.assert_array_equal(first, weights["first"].numpy())
    np.testing.assert_array_equal(second, weights["second"].numpy().astype(np.float16))


def test_node_that_is_kept_takes_along_what_rounds_nothing():
    text = """
    moved (float[n, 4] x) => (float[n, 4] y)
    <int64[2] shape = {-1, 4}>
    { s = Add(x, x)
      m = Reshape(s, shape)
      y = Mul(m, m) }
    """
    model = graph(text)
    lower_precision(model, plan_precision(model, "float16", {}, gates=frozenset()))
    raised = raise_precision(model, "float16")
    again = lower_again(model, "float16", raised.low, {"s": "it overflows"})
    types = {v.name: str(v.dtype.numpy()) for node in again.graph for v in node.outputs}
    assert (types["s"], types["m"], types["m.float16"]) == ("float32", "float32", "float16")
    assert (types["y.float16"], types["y"]) == ("float16", "float32")
    onnx.checker.check_model(ir.to_proto(again), full_check=True)


def test_interface_in_half_precision_stays():
    model = graph(LOW_INTERFACE)
    x = np.asarray([[1, 2]], np.float16)
    expected = run(model, x=x)
    raised = raise_precision(model, "float16")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run(model, x=x), expected)
    again = lower_again(model, "float16", raised.low, {"s": "asked for"})
    onnx.checker.check_model(ir.to_proto(again), full_check=True)
    np.testing.assert_array_equal(run(again, x=x), expected)


@nightly
def test_packages_with_switches_come_back_as_they_were(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all": "sparse", "all[batch<=1]": "dense"})
    moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    half = OnnxPackage.open(tmp_path / "half")
    model = ir.load(half.model_path)
    before = parts_of(model)
    without_switches(model)
    infer_types(model)
    raised = raise_precision(model, "float16", weights_of(package))
    assert isinstance(raised, Raised)
    assert (raised.given, raised.foreign) == (("weight", "scale"), ())
    again = lower_again(model, "float16", raised.low, {})
    choose_layers(again, half.manifest.layers)
    assert parts_of(again) == before


def weights_of(package: OnnxPackage) -> dict[str, ir.TensorProtocol]:
    model = ir.load(package.model_path)
    return {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value}


CACHES = CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq")
SHAPE = ["b", 2, "buffer", 4]


def lowered(low: ir.DataType = ir.DataType.FLOAT16) -> ir.Model:
    """A cache in float32 that is cast, written into, and cast back; a product of what was cast."""
    past, present = value("past", SHAPE), value("present", SHAPE)
    new, at = value("new", ["b", 2, "s", 4], low), value("at", ["b"], ir.DataType.INT64)
    narrow, written = value("past.low", SHAPE, low), value("present.low", SHAPE, low)
    seen = value("seen", SHAPE, low)
    nodes = [
        node("Cast", [past], narrow, {"to": int(low)}),
        node("TensorScatter", [narrow, new, at], written, {"axis": 2}),
        node("Relu", [written], seen),
        node("Cast", [written], present, {"to": int(ir.DataType.FLOAT)}),
    ]
    return model([past, new, at], [present, seen], nodes)


def test_cache_is_kept_as_it_is_written():
    made = lowered()
    assert narrow_caches(made, CACHES) == {"past": "float16", "present": "float16"}
    assert [node.op_type for node in made.graph] == ["TensorScatter", "Relu"]
    assert [value.name for value in made.graph.outputs] == ["present", "seen"]
    assert made.graph.inputs[0].dtype == made.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert made.graph[1].inputs[0] is made.graph.outputs[0]


@pytest.mark.parametrize("kept", ["past", "present", "what is written"])
def test_cache_that_something_reads_in_float32_stays(kept: str):
    made = lowered()
    past = made.graph.inputs[0]
    if kept == "past":
        made.graph.append(ir.node("Relu", [past]))
    elif kept == "what is written":
        made.graph.append(ir.node("Relu", [made.graph.outputs[0]]))
    else:
        made.graph.outputs[0] = made.graph[1].outputs[0]
        made.graph.outputs[0].name = "present"
    before = [node.op_type for node in made.graph]
    assert narrow_caches(made, CACHES) == {}
    assert [node.op_type for node in made.graph] == before


MOVED = """<ir_version: 10, opset_import: ["" : 20]>
low (float16[2, 2] x) => (float16[2, 2] y)
{ moved_input = Transpose(x)
  sum = Add(moved_input, x)
  moved = Transpose(sum)
  wide = Cast<to = 1>(moved)
  soft = Softmax(wide)
  narrow = Cast<to = 10>(soft)
  moved_soft = Transpose(narrow)
  y = Add(moved, moved_soft) }
"""


def test_operators_that_move_numbers_round_where_those_are_in_float32(tmp_path: Path):
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(MOVED)))
    raised = raise_precision(model, "float16")
    form = Float32Form(write_two_layers(tmp_path / "any"), model, raised, "float16")
    assert form.rounding == {"sum", "moved_soft", "y.float32"}
