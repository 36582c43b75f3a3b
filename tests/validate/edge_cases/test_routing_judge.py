from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from moh_deploy.graph.layer_reads import GateRead, RouterLogits
from moh_deploy.ops.routers import MASK
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.edge_cases.routing_judge import GateJudge, read_problem, values_mismatch

ROUTER = RouterLogits(
    path="attn",
    node="attn.MoHRouter",
    logits={"routed_logits": "scores"},
    gates="gates",
    attributes={"top_k": 2, "num_shared_heads": 0, "gate_mode": "mask"},
    attention=None,
    in_order=True,
    form=MASK,
)
LOGITS = {"routed_logits": np.zeros((1, 3, 4), np.float32)}


def test_equal_gates_of_another_router_or_case_are_judged_anew():
    gates = np.tile(np.asarray([1, 1, 0, 0], np.float32), (1, 3, 1))
    judge = GateJudge()
    assert judge.mismatch("flat", ROUTER, LOGITS, gates) is None
    other = replace(ROUTER, attributes={**ROUTER.attributes, "top_k": 1})
    assert judge.mismatch("flat", other, LOGITS, gates) is not None
    rising = {"routed_logits": LOGITS["routed_logits"] + np.arange(4, dtype=np.float32)}
    assert judge.mismatch("same heads", ROUTER, rising, gates) is not None


def test_masks_among_values_excuse_no_others():
    masked = np.array([-1e9, 1.0, 2.0], np.float32)
    rule = tolerance_for("float32")
    assert values_mismatch("scores", masked, masked, rule) is None
    assert values_mismatch("scores", masked + np.float32([0, 0, 0.1]), masked, rule) is not None


MADE = np.asarray([[[1.5, 0.0, 0.5], [0.0, 1.25, 0.75]]])  # [B, S, H]
CONSTANTS = {
    "turned": np.asarray([2, 1, 0]),
    "shape": np.asarray([2, 1, 3]),
    "one": np.asarray(1.0, np.float32),
    "half": np.asarray(0.5, np.float32),
    "uneven": np.asarray([1, 1, 0], np.float32),
    "zero_to_one": np.asarray([0]),
    "first": np.asarray([1]),
    "rest": np.asarray([3]),
    "heads": np.asarray([2]),
    "step": np.asarray([1]),
    "axes": np.asarray([-1]),
    "is_tied": np.asarray([[[True], [False]]]),
    "weights": np.asarray([[[0.5, 0.25, 1.0], [0.125, 0.5, 0.25]]], np.float32),
}


def problem(*nodes: onnx.NodeProto, wrong: Array | None = None) -> str | None:
    """Run nodes that make `read` of `made`, and judge it; `wrong` takes the place of the result."""
    feeds: Mapping[str, Array] = {"made": MADE.astype(np.float32), **CONSTANTS}
    names = [name for node in nodes for name in node.output]
    graph = helper.make_graph(
        list(nodes),
        "way",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    from onnx.reference import ReferenceEvaluator

    found = ReferenceEvaluator(model).run(names, dict(feeds))
    values = {**feeds, **dict(zip(names, found, strict=True))}
    if wrong is not None:
        values["read"] = wrong
    way = {name: node for node in reversed(nodes) for name in node.output}
    return read_problem(
        GateRead("MoHAttention", "read", "made", way, frozenset(CONSTANTS) - {"weights"}),
        MADE,
        values,
    )


def node(op: str, *inputs: str, output: str = "read", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=output, **attributes)


RIGHT = {
    "view": [node("Transpose", "made", perm=[1, 0, 2])],
    "other shape": [node("Reshape", "made", "shape")],
    "factor": [node("Mul", "made", "half")],
    "weighed": [
        node("Mul", "made", "weights", output="weighed"),
        node("ReduceSum", "weighed", "axes", output="sum", keepdims=1),
        node("Div", "weighed", "sum"),
    ],
    "shared heads apart": [
        node("Slice", "made", "zero_to_one", "first", "heads", "step", output="shared"),
        node("Slice", "made", "first", "rest", "heads", "step", output="routed"),
        node("Mul", "routed", "half", output="weighed"),
        node("Concat", "shared", "weighed", axis=-1),
    ],
    "operator that changes nothing": [node("Where", "is_tied", "made", "made")],
}


@pytest.mark.parametrize("nodes", RIGHT.values(), ids=RIGHT)
def test_views_and_what_weighs_heads_are_followed(nodes: list[onnx.NodeProto]):
    assert problem(*nodes) is None


@pytest.mark.parametrize("nodes", RIGHT.values(), ids=RIGHT)
def test_other_numbers_than_these_make_are_found(nodes: list[onnx.NodeProto]):
    off = np.full((1, 2, 3), 0.9, np.float32)
    shapes = {"view": (2, 1, 3), "other shape": (2, 1, 3)}
    names = [name for name, known in RIGHT.items() if known is nodes]
    found = problem(*nodes, wrong=off.reshape(shapes.get(names[0], (1, 2, 3))))
    assert found is not None
    assert "of what the router makes, behind" in found


WRONG = {
    "has the gate of head 2 in the place of head 0, behind Gather 'read'": [
        node("Gather", "made", "turned", axis=-1)
    ],
    "has the gate of head 1 in the place of head 0": [
        node("Slice", "made", "zero_to_one", "first", "heads", "step", output="shared"),
        node("Slice", "made", "first", "rest", "heads", "step", output="routed"),
        node("Concat", "routed", "shared", axis=-1),
    ],
    "at [0, 1, 2] is 0, expected 0.75 of what the router makes, behind Mul 'read'": [
        node("Mul", "made", "uneven")
    ],
    "at [0, 0, 0] is 0.75, expected 1.5 of what the router makes, behind Mul 'half_of', Where": [
        node("Mul", "made", "half", output="half_of"),
        node("Where", "is_tied", "half_of", "made"),
    ],
    "is of shape": [node("Identity", "made")],
    "ArgMax 'read' stands between the layer's MoHRouter and 'read'": [
        node("ArgMax", "made", axis=-1)
    ],
}


@pytest.mark.parametrize(("words", "nodes"), WRONG.items(), ids=range(len(WRONG)))
def test_what_moves_heads_or_changes_some_of_them_is_named(words: str, nodes: list[onnx.NodeProto]):
    wrong = np.zeros((1, 3, 3), np.float32) if words == "is of shape" else None
    found = problem(*nodes, wrong=wrong)
    assert found is not None
    assert words in found
