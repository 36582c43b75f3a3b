from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from moh_deploy.errors import PackageError
from moh_deploy.graph.add_function_bodies import add_function_bodies
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.package import LayerInfo
from tests.graph.models import attention, model, value
from tests.graph.models import node as make_node
from tests.handmade_package import LAYER
from tests.nightly import sampled

LAYERS = [replace(LAYER, path=f"blocks.{i}", node=f"attention {i}") for i in range(3)]


def three_layers() -> ir.Model:
    """Layers of two kinds: without, with, and without a mask."""
    x, gates = value("x", ["b", "s", 8]), value("gates", ["b", "s", 4])
    keep = value("keep", ["s", "s"], ir.DataType.BOOL)
    values = [x, *(value(f"h{i}", ["b", "s", 8]) for i in range(3))]
    nodes = [
        attention(values[i], values[i], gates, values[i + 1], keep if i == 1 else None)
        for i in range(3)
    ]
    for i, node in enumerate(nodes):
        node.name = f"attention {i}"
    built = model([x, gates, keep], [values[3]], nodes)
    add_function_bodies(built, opset=20)
    return built


def chosen(*choices: str) -> list[LayerInfo]:
    return [replace(layer, choice=one) for layer, one in zip(LAYERS, choices, strict=True)]


def domains(built: ir.Model) -> list[str]:
    return [node.domain for node in built.graph]


def content(built: ir.Model) -> bytes:
    return ir.to_proto(built).SerializeToString(deterministic=True)


def run(built: ir.Model) -> np.ndarray:
    proto = ir.to_proto(built)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((2, 5, 8)).astype(np.float32),
        "gates": np.maximum(rng.standard_normal((2, 5, 4)), 0).astype(np.float32),
        "keep": np.tri(5, dtype=bool),
    }
    return session.run(None, inputs)[0]


@sampled(2)
@pytest.mark.parametrize(
    "choices",
    [
        ["dense", "sparse", "sparse"],
        ["sparse", "dense", "sparse"],
        ["dense", "dense", "sparse"],
        ["dense", "dense", "dense"],
    ],
)
def test_nodes_go_where_they_were_chosen_to_with_their_bodies(choices: Sequence[str]):
    built, before = three_layers(), run(three_layers())
    assert choose_layers(built, chosen(*choices))
    bases = ["moh.dense" if one == "dense" else "moh" for one in choices]
    assert domains(built) == [bases[0], f"{bases[1]}.2", bases[2]]
    assert set(built.functions) == {node.op_identifier() for node in built.graph}
    np.testing.assert_array_equal(run(built), before)


def test_nodes_come_back_and_nothing_is_left_of_where_they_were():
    built, untouched = three_layers(), content(three_layers())
    for choices in (["dense", "sparse", "dense"], ["dense"] * 3, ["sparse", "dense", "dense"]):
        choose_layers(built, chosen(*choices))
        assert content(built) != untouched
    assert choose_layers(built, chosen("sparse", "sparse", "sparse"))
    assert content(built) == untouched


def test_choosing_twice_changes_nothing():
    built = three_layers()
    assert choose_layers(built, chosen("dense", "sparse", "dense"))
    once = content(built)
    assert not choose_layers(built, chosen("dense", "sparse", "dense"))
    assert content(built) == once


def test_way_to_a_choice_does_not_show():
    direct, roundabout = three_layers(), three_layers()
    choose_layers(direct, chosen("sparse", "dense", "sparse"))
    for choices in (["dense"] * 3, ["dense", "sparse", "dense"], ["sparse", "dense", "sparse"]):
        choose_layers(roundabout, chosen(*choices))
    assert content(direct) == content(roundabout)


def test_dense_domain_is_imported_only_where_it_is_used():
    built = three_layers()
    choose_layers(built, chosen("dense", "sparse", "sparse"))
    assert built.opset_imports == {"": 20, "moh": 1, "moh.2": 1, "moh.dense": 1}
    every = ("moh", "moh.2", "moh.dense")
    assert ops_of(built) == {f"{domain}::MoHAttention": 1 for domain in every}
    choose_layers(built, chosen("sparse", "sparse", "sparse"))
    assert built.opset_imports == {"": 20, "moh": 1, "moh.2": 1}
    assert ops_of(built) == {"moh::MoHAttention": 1, "moh.2::MoHAttention": 1}


def test_functions_and_nodes_of_others_are_left_alone():
    built = three_layers()
    x, y = value("other x", ["n"]), value("other y", ["n"])
    body = ir.Graph([x], [y], nodes=[make_node("Relu", [x], y)], opset_imports={"": 20})
    other = ir.Function("theirs", "MoHAttention", graph=body, attributes=[])
    built.functions[other.identifier()] = other
    choose_layers(built, chosen("dense", "dense", "dense"))
    assert built.functions[("theirs", "MoHAttention", "")] is other


def test_layer_whose_node_is_not_there_is_refused_and_nothing_moves():
    built = three_layers()
    lost = replace(LAYERS[1], node="attention 7", choice="dense")
    with pytest.raises(PackageError, match="no MoH node 'attention 7'"):
        choose_layers(built, [replace(LAYERS[0], choice="dense"), lost])
    assert domains(built) == ["moh", "moh.2", "moh"]
