from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moh_deploy.graph.table_lookups import size_questions


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """Nodes on `x`, and on its sizes `batch` and `sizes`."""
    known = {"first": np.asarray(0), "five": np.asarray(5), "two": np.asarray(2)}
    return helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["batch"], axis=0),
            *nodes,
        ],
        "questions",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )


def test_equal_of_a_size_and_a_constant_is_a_question():
    (found,) = size_questions(graph(helper.make_node("Equal", ["batch", "five"], ["is_five"])))
    assert (found.value, found.sizes) == ("is_five", (5,))


def test_constant_may_be_a_node_and_the_size_computed_with():
    number = numpy_helper.from_array(np.asarray(6))
    nodes = [
        helper.make_node("Constant", [], ["six"], value=number),
        helper.make_node("Mul", ["batch", "two"], ["twice"]),
        helper.make_node("Equal", ["twice", "six"], ["is_six"]),
    ]
    (found,) = size_questions(graph(*nodes))
    assert found.sizes == (6,)


def test_what_depends_on_numbers_of_the_inputs_is_none():
    nodes = [
        helper.make_node("Equal", ["x", "five"], ["fives"]),
        helper.make_node("Less", ["batch", "five"], ["is_less"]),
        helper.make_node("Equal", ["two", "five"], ["never"]),
    ]
    assert list(size_questions(graph(*nodes))) == []
