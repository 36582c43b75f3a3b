"""Compare a node with its counterpart in a reference: operator, attributes, inputs, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.places import ModelGraph
from moh_deploy.validate.reference.differences import abs_error, largest, largest_finite


@dataclass(frozen=True)
class WeightedGraph:
    """A graph, and where its weights are."""

    places: ModelGraph  # the graph
    root: Path  # its directory
    functions: Sequence[onnx.FunctionProto] = ()  # those of its model: bodies of operators
    # The graph that this one is a branch or a body in; None for the model's own.
    outer: WeightedGraph | None = None

    @cached_property
    def _weights(self) -> Mapping[str, onnx.TensorProto]:
        return {initializer.name: initializer for initializer in self.places.graph.initializer}

    def weight(self, name: str) -> Array | None:
        tensor = self._weights.get(name)
        if tensor is None:
            # Branches read names of the graph around them.
            return None if self.outer is None else self.outer.weight(name)
        return onnx.numpy_helper.to_array(tensor, str(self.root))

    def maker(self, value: str) -> onnx.NodeProto | None:
        index = self.places.makers.get(value)
        return None if index is None else self.places.nodes[index]

    def maker_text(self, value: str) -> str:
        node = self.maker(value)
        return f"'{value}'" if node is None else f"'{value}' (of {node.op_type})"

    def within(self, graph: onnx.GraphProto) -> WeightedGraph:
        """Return a branch or body of one of its nodes."""
        return WeightedGraph(ModelGraph(graph), self.root, self.functions, self)

    def body(self, node: onnx.NodeProto) -> bytes | None:
        """Return the function body of a node, to be compared; None for an operator without."""
        for function in self.functions:
            of = function.domain, function.name, function.overload
            if of == (node.domain, node.op_type, node.overload):
                body = onnx.FunctionProto.FromString(function.SerializeToString())
                body.domain = ""  # It says which of several bodies this is.
                return bytes(body.SerializeToString(deterministic=True))
        return None


def node_differences(
    tested: WeightedGraph, reference: WeightedGraph, value: str
) -> tuple[str, ...]:
    """Return sentences on how the nodes that make a value differ in the two graphs.

    Nothing where they are the same, or one of them does not make it; but a Cast changes numbers.
    """
    ours, theirs = tested.maker(value), reference.maker(value)
    if ours is None:
        return ()
    # Values without a counterpart are no finding by themselves: the graphs may be cut differently.
    if theirs is None:
        return ("the reference has no such cast",) if ours.op_type == "Cast" else ()
    # MoH domains, with kernels or not, count as one.
    operators = [
        (KERNEL_DOMAIN if base_domain(node.domain) else node.domain, node.op_type)
        for node in (ours, theirs)
    ]
    if operators[0] != operators[1]:
        return (f"it is {ours.op_type}, in the reference {theirs.op_type}",)
    found = (
        *_attributes(tested, reference, ours, theirs),
        *_inputs(tested, reference, ours, theirs),
    )
    same = tested.body(ours) == reference.body(theirs)
    return found if same else (*found, "its function body differs")


def _attributes(
    tested: WeightedGraph, reference: WeightedGraph, ours: onnx.NodeProto, theirs: onnx.NodeProto
) -> Iterator[str]:
    mine, other = (
        {attribute.name: attribute for attribute in node.attribute} for node in (ours, theirs)
    )
    for name in dict.fromkeys((*mine, *other)):
        if mine.get(name) == other.get(name):
            continue
        said = (
            f"attribute {name} is {_shown(mine.get(name))},"
            f" the reference's {_shown(other.get(name))}"
        )
        # Two branches that differ are not worth printing, but their first differing node is.
        if name in mine and name in other and mine[name].HasField("g"):
            inner = _in_graphs(tested.within(mine[name].g), reference.within(other[name].g))
            said = f"in its {name}, {inner}" if inner else said
        yield said


def _in_graphs(tested: WeightedGraph, reference: WeightedGraph) -> str:
    """Return the first difference of a branch or body, and which node's; empty if none is known."""
    for index, node in enumerate(tested.places.nodes):
        for said in node_differences(tested, reference, node.output[0]):
            place = tested.places.place(index)
            return f"{place.op} '{place.node}': {said}"
    return ""


def _shown(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "left out"
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int | list) else "another one"


def _inputs(
    tested: WeightedGraph, reference: WeightedGraph, ours: onnx.NodeProto, theirs: onnx.NodeProto
) -> Iterator[str]:
    if len(ours.input) != len(theirs.input):
        yield f"it reads {len(ours.input)} values, the reference {len(theirs.input)}"
    for mine, other in zip(ours.input, theirs.input, strict=False):
        got, expected = tested.weight(mine), reference.weight(other)
        if got is None or expected is None:
            # Weights may be renamed and hold the same numbers; other values are told by names.
            if mine != other:
                theirs_text = reference.maker_text(other)
                yield f"it reads {tested.maker_text(mine)}, the reference {theirs_text}"
        elif got.shape != expected.shape:
            yield (
                f"weight '{mine}' is of shape {list(got.shape)}, the reference's '{other}'"
                f" {list(expected.shape)}"
            )
        # Bytes, not `==`: NaN equals NaN here, and -0 does not equal 0.
        elif got.tobytes() != expected.tobytes():
            size = largest_finite(expected)
            share = largest(abs_error(got, expected)) / size if size else np.inf
            which = f"'{mine}'" if mine == other else f"'{mine}', in the reference '{other}',"
            yield (
                f"weight {which} holds NaN where the other has a number"
                if np.isnan(share)
                else f"weight {which} differs by up to {share:.2g} of its largest value"
            )
