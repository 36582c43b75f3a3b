"""Real engines of models of one node, built on the CPU by TensorRT-RTX: good ones and bad ones."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from moh_deploy.graph.load_model import inline_functions
from moh_deploy.graph.plugin_nodes import close_input_gaps
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from tests.cuda.trt.rtx import build
from tests.graph.models import two_convolutions
from tests.nightly import sampled
from tests.ops.cache_in_place import cache_model
from tests.ops.case_models import case_model
from tests.ops.cases import named_case

FLOATS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
BATCHES = {"x": ([1, 12, 4], [2, 12, 4], [4, 12, 4])}
CASES = {
    "MoHRouter": "two_stage",
    "MoHAttention": "bool_mask_rank4",
    "MoHAggregatedAttention": "plain",
}


def _case(op: str, dtype: str = "float16", name: str | None = None) -> Case:
    return named_case(op, name or CASES[op], dtype)


def _node(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = model.graph.node
    return node


def _set(model: onnx.ModelProto, **attributes: object) -> onnx.ModelProto:
    node = _node(model)
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(onnx.helper.make_attribute(n, v) for n, v in attributes.items())
    return model


@sampled(3)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", CASES)
def test_an_engine_holds_the_plugin_and_not_the_function(
    fake_library: Path, tmp_path: Path, op: str, dtype: str
):
    case = _case(op, dtype)
    built = build(case_model(case), tmp_path, library=fake_library)
    assert built.plugins == [op]
    assert built.layers == ["PLUGIN_V3"]
    (output,) = OPS[op].shape_rule(case.input_types(), case.attributes)
    (written,) = built.outputs
    assert written[1:] == [list(output.shape), FLOATS[dtype]]
    assert op.encode() in built.engine
    assert "ERROR" not in built.log


@sampled(2)
@pytest.mark.parametrize(
    "name",
    ["plain_rank4", "additive_mask_rank3", "causal_grouped", "filled_additive_mask_causal"],
)
def test_other_forms_of_attention_build(fake_library: Path, tmp_path: Path, name: str):
    case = _case("MoHAttention", "float16", name)
    built = build(case_model(case), tmp_path, library=fake_library)
    assert built.plugins == ["MoHAttention"]
    assert built.engine


@sampled(3)
@pytest.mark.parametrize("op", CASES)
def test_without_the_library_the_function_body_is_built(tmp_path: Path, op: str):
    built = build(case_model(_case(op)), tmp_path, library=None)
    assert built.parsed, built.errors
    assert built.plugins == []
    assert "PLUGIN_V3" not in built.layers
    assert len(built.layers) > 5


def test_a_bad_attribute_is_refused_with_the_reason(fake_library: Path, tmp_path: Path):
    """Through the parser; what is refused of whom is in test_attributes.py and test_shapes.py."""
    model = _set(case_model(_case("MoHRouter")), gate_mode="hard")
    _node(model).name = "blocks.0.attn"
    built = build(model, tmp_path, library=fake_library)
    assert not built.parsed
    assert "MoHRouter (blocks.0.attn): " in built.stderr
    assert "field gate_mode is 'hard'; expected weighted or mask." in built.stderr


@pytest.mark.parametrize("op", CASES)
def test_an_unsupported_dtype_is_refused_with_its_name(fake_library: Path, tmp_path: Path, op: str):
    model = case_model(_case(op))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT32
    built = build(model, tmp_path, library=fake_library)
    assert not built.parsed
    assert "is int32; expected float32, float16 or bfloat16." in built.stderr


def test_a_missing_library_is_told_from_a_present_one(tmp_path: Path, fake_library: Path):
    model = case_model(_case("MoHRouter"))
    assert build(model, tmp_path, library=fake_library).loaded
    assert not build(model, tmp_path, library=tmp_path / "libnone.so").loaded


def test_one_engine_for_several_gpus(fake_library: Path, tmp_path: Path):
    targets = ("SM80", "SM86", "SM89", "SM120")
    model = case_model(_case("MoHAttention"))
    built = build(model, tmp_path, library=fake_library, compute_capabilities=targets)
    assert built.engine


GAPS = [
    ("MoHRouter", "all_shared"),
    ("MoHAggregatedAttention", "window_bias_only"),
    ("MoHAggregatedAttention", "window_offset_only"),
    ("MoHAggregatedAttention", "without_query_scale"),
    ("MoHAttention", "filled_decode"),
]


@sampled(2)
@pytest.mark.parametrize(("op", "name"), GAPS)
def test_a_node_with_absent_inputs_builds_once_its_gaps_are_closed(
    fake_library: Path, tmp_path: Path, op: str, name: str
):
    model = ir.from_proto(case_model(_case(op, name=name)))
    assert close_input_gaps(model)
    built = build(ir.to_proto(model), tmp_path, library=fake_library)
    assert built.plugins == [op], built.log + built.stderr
    assert built.engine


def test_a_cache_is_written_in_place_in_front_of_the_plugin(fake_library: Path, tmp_path: Path):
    """TensorScatter becomes TensorRT's own layer for caches, and the plugin reads what it wrote."""
    model = ir.from_proto(cache_model("float16"))
    assert close_input_gaps(model)
    sizes = {name: (1, most, most) for name, most in (("batch", 4), ("seq", 8))}
    profile = {
        value.name: tuple(
            [sizes[str(size)][end] if str(size) in sizes else size for size in value.shape]
            for end in range(3)
        )
        for value in model.graph.inputs
    }
    built = build(ir.to_proto(model), tmp_path, library=fake_library, profiles=[profile])
    assert built.plugins == ["MoHAttention"], built.log + built.stderr
    assert built.layers.count("KV_CACHE_UPDATE") == 2
    assert built.engine


def test_the_body_of_a_cache_is_built_where_there_is_no_plugin(tmp_path: Path):
    model = ir.from_proto(case_model(_case("MoHAttention", name="filled_chunk")))
    inline_functions(model, but=())
    built = build(ir.to_proto(model), tmp_path, library=None)
    assert built.parsed, built.errors
    assert built.engine


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_parser_refuses_an_absent_input_in_between(
    fake_library: Path, tmp_path: Path, dtype: str
):
    """Why gaps are closed. Where this fails, a younger parser may need no pass."""
    model = case_model(_case("MoHAggregatedAttention", dtype, "window_bias_only"))
    built = build(model, tmp_path, library=fake_library)
    assert not built.parsed
    if dtype == "float32":
        assert "(input) != nullptr" in built.log
    else:  # The parser says float32 of what is not there.
        assert "If the node leaves it out, it needs the field present_inputs." in built.stderr


def test_the_parser_takes_one_body_for_another(tmp_path: Path):
    """Why functions are inlined. Where this fails, a younger parser may need no pass."""
    built = build(ir.to_proto(two_convolutions()), tmp_path, library=None, profiles=[BATCHES])
    inlined = two_convolutions()
    inline_functions(inlined, but=())
    right = build(ir.to_proto(inlined), tmp_path, library=None, profiles=[BATCHES])
    assert built.layers != right.layers
