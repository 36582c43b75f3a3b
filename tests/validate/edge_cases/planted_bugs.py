"""Bugs for the function bodies of a package: what runs is what they say."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.edge_case_package import HEADS

Nodes = list[onnx.NodeProto]


def tie_toward_the_higher_index(model: onnx.ModelProto) -> None:
    """TopK of the probabilities backwards."""

    def planted(node: onnx.NodeProto) -> Nodes:
        chosen, heads = node.output
        return [
            _constant("minus_one", np.asarray([-1])),
            _constant("far", np.asarray([-(2**31)])),
            _node("Slice", [node.input[0], "minus_one", "far", "minus_one", "minus_one"], "turned"),
            helper.make_node("TopK", ["turned", node.input[1]], [chosen, "from_behind"], axis=-1),
            _node("Shape", [node.input[0]], "whole_shape", start=-1),
            _node("Add", ["whole_shape", "minus_one"], "last_head"),
            _node("Sub", ["last_head", "from_behind"], heads),
        ]

    _replace(model, "MoHRouter", "TopK", planted)


def nan_as_the_smallest(model: onnx.ModelProto) -> None:
    """NaN logits become -inf."""

    def planted(node: onnx.NodeProto) -> Nodes:
        if node.output[0] != "logits":
            return [node]
        return [
            _node("Cast", node.input, "raw", to=TensorProto.FLOAT),
            _node("IsNaN", ["raw"], "is_nan"),
            _constant("lowest", np.asarray(-np.inf, np.float32)),
            _node("Where", ["is_nan", "lowest", "raw"], "logits"),
        ]

    _replace(model, "MoHRouter", "Cast", planted)


def softmax_without_the_maximum(model: onnx.ModelProto) -> None:
    """exp(x) / sum(exp(x))."""

    def planted(node: onnx.NodeProto) -> Nodes:
        name = node.output[0]
        return [
            _node("Exp", node.input, f"{name}_exp"),
            _node("ReduceSum", [f"{name}_exp", "last_axis"], f"{name}_sum", keepdims=1),
            _node("Div", [f"{name}_exp", f"{name}_sum"], name),
        ]

    _replace(model, "MoHRouter", "Softmax", planted)


def division_by_the_keys_that_are_seen(model: onnx.ModelProto) -> None:
    """A query without keys is 0 / 0."""

    def planted(node: onnx.NodeProto) -> Nodes:
        return [_node("Identity", ["closed"], "silent")]

    _replace(model, "MoHAttention", "Or", planted)


def head_with_every_token_is_skipped(model: onnx.ModelProto) -> None:
    """The last head, where no token left it out."""

    def planted(node: onnx.NodeProto) -> Nodes:
        if node.output[0] != "product":
            return [node]
        last = np.arange(HEADS).reshape(1, HEADS, 1, 1) == HEADS - 1
        return [
            _node("Mul", node.input, "right_product"),
            _constant("all_tokens", np.asarray([0, 2])),
            _constant("last_head", last),
            _node("Abs", ["gate"], "size_of_gate"),
            _node("ReduceMin", ["size_of_gate", "all_tokens"], "least", keepdims=1),
            _node("Greater", ["least", "zero"], "is_full"),
            _node("And", ["is_full", "last_head"], "skipped"),
            _node("Where", ["skipped", "zero", "right_product"], "product"),
        ]

    _replace(model, "MoHAttention", "Mul", planted)


def nan_gates_are_closed(model: onnx.ModelProto) -> None:
    """Attention takes NaN for 0."""

    def planted(node: onnx.NodeProto) -> Nodes:
        if node.output[0] != "gate":
            return [node]
        return [
            _node("Cast", node.input, "raw_gate", to=TensorProto.FLOAT),
            _node("IsNaN", ["raw_gate"], "gate_is_nan"),
            _node("Where", ["gate_is_nan", "zero", "raw_gate"], "gate"),
        ]

    _replace(model, "MoHAttention", "Cast", planted)


def _replace(
    model: onnx.ModelProto, op: str, inner: str, planted: Callable[[onnx.NodeProto], Nodes]
) -> None:
    """Put other nodes in place of the nodes of one kind in every body of an operator."""
    for function in model.functions:
        if function.name == op:
            changed = [
                new
                for node in function.node
                for new in (planted(node) if node.op_type == inner else [node])
            ]
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in changed]
            del function.node[:]
            function.node.extend(copies)


def _node(op: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], **attributes)


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def weights_of_nan(name: str) -> Callable[[onnx.ModelProto], None]:
    """A weight that a checkpoint holds as NaN: function bodies compute with it, too."""

    def plant(model: onnx.ModelProto) -> None:
        (weight,) = [item for item in model.graph.initializer if item.name == name]
        nan = np.full_like(numpy_helper.to_array(weight), np.nan)
        weight.CopyFrom(numpy_helper.from_array(nan, name))

    return plant
