from __future__ import annotations

import onnx_ir as ir
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.graph.export_names import LayerNames, TranslatedLayer, keep_gates
from tests.graph.models import add_weight, attention, model, node, value


def layers(count: int) -> ir.Model:
    """Layers of one MoHAttention each, whose gates end the outputs."""
    x = value("x", ["b", "s", 8])
    outputs = [value(f"y{i}", ["b", "s", 8]) for i in range(count)]
    gates = [value(f"g{i}", ["b", "s", 4]) for i in range(count)]
    logits = value("logits", ["b", "s", 4])
    nodes = [
        one
        for y, g in zip(outputs, gates, strict=True)
        for one in (node("Relu", [logits], g), attention(x, x, g, y))
    ]
    return model([x, logits], [*outputs, *gates], nodes)


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
    assert [n.outputs[0].name for n in built.graph if n.op_type == "Relu"] == [
        "blocks.0.gates",
        "blocks.1.gates",
    ]
    assert [n.name for n in built.graph if n.op_type == "MoHAttention"] == [
        "blocks.0.MoHAttention",
        "blocks.1.MoHAttention",
    ]


def test_projections_are_named_after_their_layers():
    x, w, logits = value("x", ["b", "s", 8]), value("w", [8, 8]), value("l", ["b", "s", 4])
    q, y, flat, z = (value(n, ["b", "s", 8]) for n in ("q", "y", "flat", "z"))
    g, shape = value("g", ["b", "s", 4]), value("shape", [3], ir.DataType.INT64)
    nodes = [
        node("Relu", [logits], g),
        node("MoHQueryProjection", [x, w, g], q),
        attention(q, x, g, y),
        node("Reshape", [y, shape], flat),
        node("MoHOutputProjection", [flat, w, g], z),
    ]
    (names,) = keep_gates(model([x, w, logits, shape], [z, g], nodes), translated("attn"))
    assert names.query_projection == nodes[1].name == "attn.MoHQueryProjection"
    assert names.output_projection == nodes[4].name == "attn.MoHOutputProjection"


def test_router_is_named_after_the_first_layer_whose_gates_it_makes():
    x, logits, routed = (value(n, ["b", "s", 8]) for n in ("x", "logits", "routed"))
    y0, y1, g0, g1 = (value(n, ["b", "s", 8]) for n in ("y0", "y1", "g0", "g1"))
    nodes = [node("MoHRouter", [logits], routed), node("Identity", [routed], g0)]
    nodes += [attention(x, x, g0, y0), node("Cast", [routed], g1), attention(x, x, g1, y1)]
    built = model([x, logits], [y0, y1, g0, g1], nodes)
    names = keep_gates(built, translated("a", "b"))
    assert [name.router for name in names] == ["a.MoHRouter", None]
    assert nodes[0].name == "a.MoHRouter"
    assert names[0].nodes == {"a.MoHRouter", "a.MoHAttention"}


def test_router_whose_gates_are_weighed_is_named_after_the_layer():
    x, y, logits, weights, routed, g = (
        value(n, ["b", "s", 8]) for n in ("x", "y", "logits", "weights", "routed", "g")
    )
    router = node("MoHRouter", [logits], routed)
    nodes = [router, node("Mul", [routed, weights], g), attention(x, x, g, y)]
    (names,) = keep_gates(model([x, logits, weights], [y, g], nodes), translated("a"))
    assert names.router == router.name == "a.MoHRouter"


def test_layer_without_a_node_takes_none_from_the_next_one():
    x, y, g0, g1 = (value(n, ["b", "s", 8]) for n in ("x", "y", "g0", "g1"))
    logits = value("logits", ["b", "s", 4])
    nodes = [node("Relu", [logits], g0), node("Tanh", [logits], g1), attention(x, x, g1, y)]
    built = model([x, logits], [y, g0, g1], nodes)
    names = keep_gates(built, [TranslatedLayer("a", False, False), *translated("b")])
    assert names == (LayerNames("a", "a.gates", None), LayerNames("b", "b.gates", "b.MoHAttention"))


def test_node_is_named_after_its_op():
    x, y, g = (value(n, ["b", "s", 8]) for n in ("x", "y", "g"))
    logits = value("logits", ["b", "s", 4])
    other = attention(x, x, g, y)
    other.op_type = "MoHAggregatedAttention"
    built = model([x, logits], [y, g], [node("Relu", [logits], g), other])
    names = keep_gates(built, translated("a"))
    assert names == (LayerNames("a", "a.gates", "a.MoHAggregatedAttention"),)
    assert other.name == "a.MoHAggregatedAttention"


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


def test_model_without_layers_is_not_changed():
    built = layers(1)
    del built.graph.outputs[1:]
    assert keep_gates(built, []) == ()
    assert [output.name for output in built.graph.outputs] == ["y0"]


def test_layer_without_gates_at_the_end_of_the_outputs_is_an_error():
    built = layers(1)
    built.graph.outputs.clear()
    with pytest.raises(ValueError, match="zip"):
        keep_gates(built, translated("a"))


def test_layers_that_were_merged_are_refused():
    built = layers(1)
    built.graph.outputs.append(built.graph.outputs[-1])  # the gates of both
    with pytest.raises(ExportError, match="2 layers have 1 attentions in what"):
        keep_gates(built, translated("student", "teacher"))
