from collections.abc import Sequence

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.graph.export_names import (
    LayerNames,
    TranslatedLayer,
    keep_gates,
    name_interface,
    name_nodes,
    restore_output_types,
)
from tests.graph.models import add_weight, attention, model, node, value

BATCH, PAST = DimExpr("batch"), DimExpr("past")


def shape(found: ir.Value) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in found.shape]


def decoder() -> ir.Model:
    """x [s0, 1, 8] and a mask [s0, s1 + 1]; the exporter's symbols are s0 and s1."""
    x, cache = value("x", ["s0", 1, 8]), value("cache", ["s0", "s1", 8])
    mask = value("mask", ["s0", "s1 + 1"])
    inner, y = value("inner", ["s0", "s1 + s10", 8]), value("y", ["s0", "s1 + 1", 8])
    nodes = [node("Concat", [cache, x], inner, {"axis": 1}), node("Mul", [inner, mask], y)]
    return model([x, cache, mask], [y], nodes)


DIMS = [{0: BATCH}, {0: BATCH, 1: PAST}, {0: BATCH, 1: DimExpr("past", 1, 1)}]


def test_symbols_get_the_users_names():
    built = decoder()
    name_interface(built, dims=DIMS, outputs=["answer"])
    assert [shape(found) for found in built.graph.inputs] == [
        ["batch", 1, 8],
        ["batch", "past", 8],
        ["batch", "past+1"],
    ]
    assert shape(built.graph.outputs[0]) == ["batch", "past + 1", 8]
    assert built.graph.outputs[0].name == "answer"
    # A symbol that only begins like another is left alone.
    assert shape(built.graph[0].outputs[0]) == ["batch", "past + s10", 8]


def test_symbol_that_no_axis_has_alone_gets_its_name():
    x, y = value("x", ["4*s60 - 3", "s7"]), value("y", ["s60", "s7"])
    built = model([x], [y], [node("Relu", [x], y)])
    dims = [{0: DimExpr("t", 4, -3), 1: DimExpr("half", 2)}]
    name_interface(built, dims=dims, outputs=["y"])
    assert shape(built.graph.inputs[0]) == ["4*t-3", "2*half"]
    assert shape(built.graph.outputs[0]) == ["t", "s7"]


def test_name_that_an_inner_value_has_is_taken_from_it():
    built = decoder()
    name_interface(built, dims=DIMS, outputs=["inner"])
    assert built.graph[0].outputs[0].name == "inner.inner"
    assert built.graph.outputs[0].name == "inner"


def test_outputs_may_swap_their_names():
    built = parsed("x", "a b", "a = Relu (x) b = Tanh (x)")
    name_interface(built, dims=[{0: BATCH}], outputs=["b", "a"])
    assert [output.name for output in built.graph.outputs] == ["b", "a"]
    assert [n.outputs[0].name for n in built.graph] == ["b", "a"]


@pytest.mark.parametrize("twice", ["an output", "an input"])
def test_output_that_is_something_else_as_well_becomes_a_copy(twice: str):
    x, y = value("x", ["s0"]), value("y", ["s0"])
    outputs = [y, y] if twice == "an output" else [y, x]
    built = model([x], outputs, [node("Relu", [x], y)])
    name_interface(built, dims=[{0: BATCH}], outputs=["first", "second"])
    assert [output.name for output in built.graph.outputs] == ["first", "second"]
    assert built.graph.inputs[0].name == "x"
    assert built.graph.outputs[1].producer().op_type == "Identity"
    assert shape(built.graph.outputs[1]) == ["batch"]


@pytest.mark.parametrize("is_output", [True, False])
def test_weight_that_has_the_name_of_an_output_gives_way(is_output: bool):
    x, y = value("x", ["s0"]), value("y", ["s0"])
    built = model([x], [y], [])
    weight = add_weight(built, "scale")
    built.graph.append(node("Mul", [x, weight], y))
    if is_output:
        built.graph.outputs.append(weight)
    outputs = ["answer", "scale"] if is_output else ["scale"]
    name_interface(built, dims=[{0: BATCH}], outputs=outputs)
    assert [output.name for output in built.graph.outputs] == outputs
    onnx.checker.check_model(ir.to_proto(built))
    assert list(built.graph.initializers) == [weight.name] == ["scale.inner"]


PARSED = '<ir_version: 10, opset_import: ["" : 20, "moh" : 1]> g (%s) => (%s) { %s }'
ATTENTION = "y%d = moh.MoHAttention (x, x, x, g%d)"


def parsed(inputs: str, outputs: str, body: str) -> ir.Model:
    """A model of floats [b, s, 8]."""
    typed = [
        ", ".join(f"float[b, s, 8] {name}" for name in names.split()) for names in (inputs, outputs)
    ]
    return ir.from_proto(parser.parse_model(PARSED % (*typed, body)))


def layers(count: int) -> ir.Model:
    """Layers of one MoHAttention each, whose gates end the outputs."""
    body = " ".join(f"g{i} = Relu (logits) {ATTENTION % (i, i)}" for i in range(count))
    names = [f"{kind}{i}" for kind in "yg" for i in range(count)]
    return parsed("x logits", " ".join(names), body)


def translated(*paths: str) -> list[TranslatedLayer]:
    return [TranslatedLayer(path, replaced=True, viewed=False) for path in paths]


def test_gates_leave_the_outputs_and_keep_a_name():
    built = layers(2)
    names = keep_gates(built, translated("blocks.0", "blocks.1"))
    assert names == (
        LayerNames("blocks.0", "blocks.0.gates", "blocks.0.MoHAttention"),
        LayerNames("blocks.1", "blocks.1.gates", "blocks.1.MoHAttention"),
    )
    assert [output.name for output in built.graph.outputs] == ["y0", "y1"]
    gates = [n.outputs[0].name for n in built.graph if n.op_type == "Relu"]
    assert gates == ["blocks.0.gates", "blocks.1.gates"]
    attentions = [n.name for n in built.graph if n.op_type == "MoHAttention"]
    assert attentions == ["blocks.0.MoHAttention", "blocks.1.MoHAttention"]


def test_projections_are_named_after_their_layers():
    body = """g = Relu (l) q = moh.MoHQueryProjection (x, w, g) a = moh.MoHAttention (q, x, x, g)
        flat = Reshape (a, shape) z = moh.MoHOutputProjection (flat, w, g)"""
    built = parsed("x w l shape", "z g", body)
    (names,) = keep_gates(built, translated("attn"))
    assert names.query_projection == built.graph[1].name == "attn.MoHQueryProjection"
    assert names.output_projection == built.graph[4].name == "attn.MoHOutputProjection"


def test_router_is_named_after_the_first_layer_whose_gates_it_makes():
    body = f"""routed = moh.MoHRouter (logits) g0 = Identity (routed) {ATTENTION % (0, 0)}
        g1 = Cast <to = 1> (routed) {ATTENTION % (1, 1)}"""
    built = parsed("x logits", "y0 y1 g0 g1", body)
    names = keep_gates(built, translated("a", "b"))
    assert [name.router for name in names] == ["a.MoHRouter", None]
    assert built.graph[0].name == "a.MoHRouter"
    assert names[0].nodes == {"a.MoHRouter", "a.MoHAttention"}


def test_router_whose_gates_are_weighed_is_named_after_the_layer():
    body = f"routed = moh.MoHRouter (logits) g0 = Mul (routed, w) {ATTENTION % (0, 0)}"
    built = parsed("x logits w", "y0 g0", body)
    (names,) = keep_gates(built, translated("a"))
    assert names.router == built.graph[0].name == "a.MoHRouter"


def test_layer_without_a_node_takes_none_from_the_next_one():
    body = f"g0 = Relu (logits) g1 = Tanh (logits) {ATTENTION % (0, 1)}"
    built = parsed("x logits", "y0 g0 g1", body.replace("Attention", "AggregatedAttention"))
    names = keep_gates(built, [TranslatedLayer("a", False, False), *translated("b")])
    node = "b.MoHAggregatedAttention"
    assert names == (LayerNames("a", "a.gates", None), LayerNames("b", "b.gates", node))


def test_layer_that_runs_twice_has_two_names():
    names = keep_gates(layers(3), translated("attn", "attn", ""))
    assert [name.layer for name in names] == ["attn", "attn#2", "model"]
    assert [name.gates for name in names] == ["attn.gates", "attn#2.gates", "model.gates"]


def test_weight_of_the_name_of_gates_or_attention_gives_way():
    built = layers(1)
    x, view = built.graph.inputs[0], value("view", ["b", "s", 8])
    weights = [add_weight(built, f"attn.{name}", [8]) for name in ("gates", "attention")]
    built.graph.append(node("Sum", [x, *weights], view))
    built.graph.outputs.append(view)
    (names,) = keep_gates(built, [TranslatedLayer("attn", replaced=True, viewed=True)])
    assert (names.gates, names.attention) == ("attn.gates", "attn.attention")
    assert sorted(built.graph.initializers) == ["attn.attention.inner", "attn.gates.inner"]
    assert [weight.name for weight in weights] == ["attn.gates.inner", "attn.attention.inner"]


def test_gates_that_are_a_weight_of_that_name_keep_it():
    x, y = value("x", ["b", "s", 8]), value("y", ["b", "s", 8])
    built = model([x], [y], [])
    gates = add_weight(built, "attn.gates", [1, 1, 4])
    built.graph.append(attention(x, x, gates, y))
    built.graph.outputs.append(gates)
    (names,) = keep_gates(built, translated("attn"))
    assert names.gates == gates.name == "attn.gates"
    assert list(built.graph.initializers) == ["attn.gates"]


def test_layers_that_were_merged_are_refused():
    built = layers(1)
    built.graph.outputs.append(built.graph.outputs[-1])  # the gates of both
    with pytest.raises(ExportError, match="2 layers have 1 attentions in what"):
        keep_gates(built, translated("student", "teacher"))


def chain(*ops: tuple[str, Sequence[str] | None]) -> ir.Model:
    """Operators one behind the other, each with the scopes that the exporter writes."""
    values = [value(f"v{i}", ["b", 8]) for i in range(len(ops) + 1)]
    nodes = [node(op, [values[i]], values[i + 1]) for i, (op, _) in enumerate(ops)]
    for i, (made, (_, scopes)) in enumerate(zip(nodes, ops, strict=True)):
        made.name = f"node_{i}"
        if scopes is not None:
            made.metadata_props["pkg.torch.onnx.name_scopes"] = repr([*scopes, made.name])
    return model([values[0]], [values[-1]], nodes)


def names(built: ir.Model, *keep: str) -> list[str | None]:
    name_nodes(built, keep=frozenset(keep))
    return [node.name for node in built.graph]


def test_nodes_are_named_after_their_innermost_module():
    built = chain(("Relu", ["", "mlp", "mlp.act"]), ("MoHTokenConv", ["", "mlp"]), ("Tanh", [""]))
    assert names(built) == ["mlp.act.Relu", "mlp.MoHTokenConv", "model.Tanh"]
    assert names(chain(("Relu", None), ("Relu", []))) == ["node_0", "model.Relu"]  # nothing is said


def test_no_two_nodes_have_one_name():
    built = chain(*[("Relu", ["", "act"])] * 3, ("Tanh", ["", "act"]))
    assert names(built) == ["act.Relu", "act.Relu#2", "act.Relu#3", "act.Tanh"]


def test_names_of_layers_stay_and_are_not_given_again():
    built = chain(("MoHRouter", ["", "attn"]), ("MoHRouter", ["", "attn"]))
    built.graph.node(0).name = "attn.MoHRouter"
    assert names(built, "attn.MoHRouter") == ["attn.MoHRouter", "attn.MoHRouter#2"]


HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def typed_model(body: str, outputs: str) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float16[2, 3] x) => ({outputs}) <float[2, 3] wide, float[2] sum> {{
            wide = Cast <to = 1> (x)
            {body}
        }}"""
    return ir.from_proto(parser.parse_model(text))


def test_an_output_is_rounded_to_the_dtype_of_the_program():
    made = typed_model("sum = ReduceSum <keepdims = 0> (wide)", "float[2] sum")
    restore_output_types(made, [HALF])
    (output,) = made.graph.outputs
    producer = output.producer()
    assert (output.dtype, producer.op_type, producer.inputs[0].name) == (HALF, "Cast", "sum")


def test_the_cast_that_others_read_is_taken():
    body = "sum = ReduceSum <keepdims = 0> (wide) low = Cast <to = 10> (sum) y = Neg (low)"
    made = typed_model(body, "float[2] sum, float16[2] y")
    restore_output_types(made, [HALF, HALF])
    assert [value.name for value in made.graph.outputs] == ["low", "y"]
    assert len(made.graph) == 4


def test_an_output_of_the_right_dtype_stays():
    made = typed_model("sum = ReduceSum <keepdims = 0> (wide)", "float[2] sum")
    restore_output_types(made, [FLOAT])
    assert [value.name for value in made.graph.outputs] == ["sum"]
