from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from moh_deploy.config.dims import DimExpr
from moh_deploy.graph.export_names import name_interface
from tests.graph.models import add_weight, model, node, value

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


def test_symbol_that_no_axis_has_alone_gets_its_name():
    x, y = value("x", ["4*s60 - 3", "s7"]), value("y", ["s60", "s7"])
    built = model([x], [y], [node("Relu", [x], y)])
    dims = [{0: DimExpr("t", 4, -3), 1: DimExpr("half", 2)}]
    name_interface(built, dims=dims, outputs=["y"])
    assert shape(built.graph.inputs[0]) == ["4*t-3", "2*half"]
    assert shape(built.graph.outputs[0]) == ["t", "s7"]


def test_symbol_that_only_begins_like_another_is_left_alone():
    built = decoder()
    name_interface(built, dims=DIMS, outputs=["answer"])
    (inner,) = built.graph[0].outputs
    assert shape(inner) == ["batch", "past + s10", 8]


def test_name_that_an_inner_value_has_is_taken_from_it():
    built = decoder()
    name_interface(built, dims=DIMS, outputs=["inner"])
    assert built.graph[0].outputs[0].name == "inner.inner"
    assert built.graph.outputs[0].name == "inner"


def test_outputs_may_swap_their_names():
    x = value("x", ["s0"])
    a, b = value("a", ["s0"]), value("b", ["s0"])
    built = model([x], [a, b], [node("Relu", [x], a), node("Tanh", [x], b)])
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
