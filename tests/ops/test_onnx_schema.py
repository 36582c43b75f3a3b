import subprocess
import sys

import onnx
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import OPS, TensorType
from moh_deploy.ops.onnx_schema import make_node, register_schemas, single_node_model
from tests.nightly import sampled
from tests.ops.batches import assert_nothing_wrong
from tests.ops.cases import OP_CASES
from tests.ops.implementations import case_model


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_schemas()
    register_schemas()  # A second call must change nothing.


@pytest.mark.parametrize("spec", OPS.values(), ids=lambda spec: spec.name)
def test_schema_says_what_the_spec_says(spec):
    schema = onnx.defs.get_schema(spec.name, domain="moh")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert schema.since_version == 1
    assert [(i.name, i.option == optional) for i in schema.inputs] == [
        (i.name, i.optional) for i in spec.inputs
    ]
    assert [o.name for o in schema.outputs] == [o.name for o in spec.outputs]
    required = {a.name for a in schema.attributes.values() if a.required}
    assert required == {a.name for a in spec.attributes if a.default is None}
    assert {"plugin_version", "plugin_namespace"} < set(schema.attributes)


@sampled(3)
@pytest.mark.parametrize("op", OPS)
def test_models_stay_valid_once_schemas_are_registered(op: str):
    assert_nothing_wrong(
        OP_CASES[op][::3],
        lambda case: onnx.checker.check_model(case_model(case), full_check=True),
    )


def _router_model() -> onnx.ModelProto:
    inputs = [TensorType("float16", ("batch", "seq", size)) for size in (7, 3, 2)]
    model = single_node_model("MoHRouter", inputs, {"top_k": 2, "num_shared_heads": 3})
    model.graph.output[0].type.Clear()
    return model


@pytest.mark.parametrize("strict", [False, True])
def test_shape_inference_knows_the_op(strict: bool):
    inferred = onnx.shape_inference.infer_shapes(_router_model(), strict_mode=strict)
    gates = inferred.graph.output[0].type.tensor_type
    assert gates.elem_type == onnx.TensorProto.FLOAT16
    assert [dim.dim_param or dim.dim_value for dim in gates.shape.dim] == ["batch", "seq", 10]


def test_shape_inference_refuses_what_the_op_does_not_define():
    model = _router_model()
    next(a for a in model.graph.node[0].attribute if a.name == "top_k").i = 8
    with pytest.raises(ExportError, match="top_k is 8; expected at most the 7 heads"):
        onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_shape_inference_waits_for_unknown_ranks():
    model = _router_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model)
    assert not inferred.graph.output[0].type.tensor_type.HasField("shape")


def test_process_that_registered_schemas_ends_cleanly():
    """The schema holds Python callbacks, which must not outlive the interpreter."""
    code = "from moh_deploy.ops.onnx_schema import register_schemas; register_schemas()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_node_carries_every_attribute_and_the_plugin_keys():
    node = make_node("MoHRouter", ["routed"], ["gates"], top_k=2)
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values == {
        "top_k": 2,
        "num_shared_heads": 0,
        "gate_mode": b"weighted",
        "plugin_version": b"1",
        "plugin_namespace": b"moh",
    }
    assert node.domain == "moh"


def test_node_keeps_absent_inputs_before_a_present_one_only():
    assert make_node("MoHRouter", ["", "s", ""], ["g"], top_k=0, num_shared_heads=2).input == [
        "",
        "s",
    ]


@pytest.mark.parametrize(
    ("op_name", "outputs", "attributes", "message"),
    [
        ("MoHRoute", ["g"], {}, "unknown op 'MoHRoute'; expected one of MoHAggregatedAttention, M"),
        ("MoHRouter", ["g", "h"], {"top_k": 1}, "2 outputs; expected 1"),
        ("MoHRouter", ["g"], {}, "needs the attribute 'top_k'"),
        ("MoHRouter", ["g"], {"top_k": 1, "topk": 1}, "no attribute 'topk'"),
    ],
)
def test_node_of_something_else_is_refused(op_name, outputs, attributes, message: str):
    with pytest.raises(ExportError, match=message):
        make_node(op_name, ["x"], outputs, **attributes)


def test_ops_need_no_torch():
    code = (
        "import sys, moh_deploy.ops, moh_deploy.ops.onnx_schema; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
