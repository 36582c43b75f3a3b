"""A pass says whether it changed the graph: compared with every byte of the model."""

import ast
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from moh_deploy.config.dims import DimExpr
from moh_deploy.graph import sequences
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.emulated_dtype import emulate
from moh_deploy.graph.export_names import (
    TranslatedLayer,
    keep_gates,
    name_interface,
    name_nodes,
    restore_output_types,
)
from moh_deploy.graph.forced_gates import drop_unread, fix_routing, force_gates
from moh_deploy.graph.layer_reads import force_logits, router_logits
from moh_deploy.graph.load_model import (
    add_function_bodies,
    import_domains,
    infer_types,
    inline_functions,
)
from moh_deploy.graph.plugin_nodes import close_input_gaps, float_masks, fuse_attention, tell_fields
from moh_deploy.graph.precision_casts import lower_precision, raise_precision
from moh_deploy.graph.precision_policy import plan_precision
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.graph.weight_noise import add_weight_noise
from moh_deploy.package import with_choices
from tests.graph.models import attention, two_convolutions, value
from tests.graph.models import model as graph_model
from tests.two_layers import FIRST, LAYERS, two_layers

DOUBLED = (
    '<ir_version: 10, opset_import: ["" : 21]> g (%s[n, 2] x) => (%s[n, 2] y) {y = Add (x, x)}'
)
Edit = Callable[[ir.Model], object]
Make = Callable[[], ir.Model]

BY_SIZE = with_choices(LAYERS, {"all": "sparse", "all[batch<=4]": "dense"}, dims=["batch", "seq"])
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def layers() -> ir.Model:
    return ir.from_proto(two_layers())


def switched() -> ir.Model:
    model = layers()
    choose_layers(model, BY_SIZE)
    return model


def without_bodies() -> ir.Model:
    model = two_convolutions()
    model.functions.clear()
    for node in model.graph:
        node.domain = "moh"
    return model


MASKED = "masked"


def masked() -> ir.Model:
    x, gates, y = value("x", [2, 3, 8]), value("gates", [2, 3, 4]), value("y", [2, 3, 8])
    mask = value("mask", [3, 3], ir.DataType.BOOL)
    node = attention(x, x, gates, y, mask)
    node.name = MASKED
    return graph_model([x, gates, mask], [y], [node])


def doubled(dtype: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(DOUBLED % (dtype, dtype)))


def typed(dtype: str) -> ir.Model:
    model = doubled(dtype)
    infer_types(model)
    return model


def inner() -> ir.Model:
    text = DOUBLED.replace("y = Add (x, x)", "h = Add (x, x) y = Mul (h, h)")
    return ir.from_proto(parser.parse_model(text % ("float", "float")))


def unread() -> ir.Model:
    model = inner()
    model.graph.outputs[0] = model.graph[0].outputs[0]
    return model


def scoped() -> ir.Model:
    model = doubled("float")
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'mlp', 'add']"
    return model


def gap() -> ir.Model:
    model = layers()
    routers = [node for node in model.graph if node.op_type == "MoHRouter"]
    value = routers[0].inputs[0]
    routers[0].resize_inputs(2)
    routers[0].replace_input_with(0, None)
    routers[0].replace_input_with(1, value)
    return model


def lower(model: ir.Model) -> bool:
    return lower_precision(model, plan_precision(model, "float16", {}, gates=frozenset()))


def on_graph(edit: Callable[[onnx.GraphProto], object]) -> Edit:
    """Run a pass that edits a proto, and bring its result back."""

    def run(model: ir.Model) -> object:
        proto = ir.to_proto(model)
        found = edit(proto.graph)
        model.graph = ir.from_proto(proto).graph
        return found

    return run


def emulated(model: ir.Model) -> object:
    proto = ir.to_proto(model)
    found = emulate(proto, "bfloat16")
    model.graph = ir.from_proto(proto).graph
    return found


def logits_of(count: int) -> Callable[[onnx.GraphProto], object]:
    def run(graph: onnx.GraphProto) -> object:
        routers = [layer for layer in router_logits(graph, LAYERS) if layer is not None][:count]
        return force_logits(graph, routers, {"scores": np.dtype(np.float32)})

    return run


class Case(NamedTuple):
    """A pass, a model that it changes, and one that it leaves as it is; None for no such model."""

    run: Edit
    changes: Make | None
    leaves: Make | None


def repeated(run: Edit, make: Make) -> Case:
    """A pass that leaves a model as it is on which it has run already."""

    def again() -> ir.Model:
        model = make()
        run(model)
        return model

    return Case(run, make, again)


FED = {"gates_0": np.dtype(np.float32)}
ROUTED = {"gates_1": np.zeros((1, 1, 1), np.float32)}
AXES = [{0: DimExpr("batch")}]

CASES = {
    "add_function_bodies": repeated(lambda m: add_function_bodies(m, opset=20), without_bodies),
    "choose_layers": repeated(lambda m: choose_layers(m, BY_SIZE), layers),
    "close_input_gaps": repeated(close_input_gaps, gap),
    "drop_unread": repeated(on_graph(drop_unread), unread),
    "emulate": Case(emulated, lambda: doubled("bfloat16"), lambda: doubled("float")),
    "fix_routing": Case(on_graph(lambda graph: fix_routing(graph, ROUTED)), layers, None),
    "fix_routing of none": Case(on_graph(lambda graph: fix_routing(graph, {})), None, layers),
    "float_masks": repeated(lambda m: float_masks(m, [MASKED]), masked),
    "fuse_attention": Case(lambda m: fuse_attention(m, [MASKED]), masked, None),
    "fuse_attention of none": Case(lambda m: fuse_attention(m, []), None, masked),
    "force_gates": Case(on_graph(lambda graph: force_gates(graph, FED)), layers, None),
    "force_gates of none": Case(on_graph(lambda graph: force_gates(graph, {})), None, layers),
    "force_logits": Case(on_graph(logits_of(1)), layers, None),
    "force_logits of none": Case(on_graph(logits_of(0)), None, layers),
    "import_domains": repeated(import_domains, without_bodies),
    "infer_types": repeated(infer_types, inner),
    "inline_functions": repeated(lambda m: inline_functions(m, but=[FIRST]), layers),
    "keep_gates": Case(lambda m: keep_gates(m, [TranslatedLayer("a", False, False)]), inner, None),
    "lower_precision": Case(lower, lambda: typed("float"), lambda: typed("int64")),
    "name_interface": repeated(lambda m: name_interface(m, dims=AXES, outputs=["z"]), inner),
    "name_nodes": repeated(lambda m: name_nodes(m, keep=frozenset()), scoped),
    "raise_precision": Case(
        lambda m: raise_precision(m, "float16"), lambda: typed("float16"), lambda: typed("float")
    ),
    "restore_output_types": repeated(lambda m: restore_output_types(m, [HALF]), inner),
    "tell_fields": repeated(lambda m: tell_fields(m, {FIRST: 0.5}), layers),
    "add_weight_noise": Case(on_graph(add_weight_noise), layers, None),
    "without_switches": repeated(without_switches, switched),
}


def says_what_it_does(run: Edit, model: ir.Model) -> bool:
    """Run a pass, check what it says, and return whether it changed the model."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    said = bool(run(model))
    changed = ir.to_proto(model).SerializeToString(deterministic=True) != before
    assert said == changed, f"it says {said}; that the model has changed is {changed}"
    return changed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.changes])
def test_pass_that_changes_a_model_says_so(name: str):
    case = CASES[name]
    assert says_what_it_does(case.run, case.changes())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.leaves])
def test_pass_that_leaves_a_model_as_it_is_says_so(name: str):
    case = CASES[name]
    assert not says_what_it_does(case.run, case.leaves())


def test_every_pass_of_a_sequence_is_among_the_cases():
    calls = [
        item
        for item in ast.walk(ast.parse(inspect.getsource(sequences)))
        if isinstance(item, ast.Call)
    ]
    passes = {
        ast.unparse(call.func).rpartition(".")[2]
        for call in calls
        if call.args and ast.unparse(call.args[0]) == "model"
    }
    assert passes - {"plan_precision"} <= CASES.keys()  # a plan changes nothing
    assert {"keep_gates", "choose_layers", "inline_functions"} <= passes


def test_a_pass_that_says_nothing_is_found():
    with pytest.raises(AssertionError, match="it says False; that the model has changed is True"):
        says_what_it_does(
            lambda model: name_interface(model, dims=AXES, outputs=["z"]) and None, inner()
        )
