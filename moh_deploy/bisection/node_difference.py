"""What is different about a node and its counterpart in a reference: operator, attributes, inputs,
weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from moh_deploy.bisection.places import ModelGraph
from moh_deploy.npz import Array
from moh_deploy.validate.differences import abs_error, largest, largest_finite


@dataclass(frozen=True)
class WeightedGraph:
    """A graph, and where its weights are.

    Attributes:
        places: The graph.
        root: Its directory.
    """

    places: ModelGraph
    root: Path

    @cached_property
    def _weights(self) -> Mapping[str, onnx.TensorProto]:
        return {one.name: one for one in self.places.graph.initializer}

    def weight(self, name: str) -> Array | None:
        tensor = self._weights.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, str(self.root))

    def maker(self, value: str) -> onnx.NodeProto | None:
        index = self.places.makers.get(value)
        return None if index is None else self.places.nodes[index]


def node_differences(
    tested: WeightedGraph, reference: WeightedGraph, value: str
) -> tuple[str, ...]:
    """Return sentences on how the nodes that make a value differ in the two graphs.

    Nothing where one of them does not make it, or they are the same.
    """
    ours, theirs = tested.maker(value), reference.maker(value)
    if ours is None or theirs is None:
        return ()
    if (ours.domain, ours.op_type) != (theirs.domain, theirs.op_type):
        return (f"it is a {ours.op_type}, the reference a {theirs.op_type}",)
    return (
        *_attributes(ours, theirs),
        *_inputs(tested, reference, ours, theirs),
    )


def _attributes(ours: onnx.NodeProto, theirs: onnx.NodeProto) -> Iterator[str]:
    mine, other = ({one.name: one for one in node.attribute} for node in (ours, theirs))
    for name in dict.fromkeys((*mine, *other)):
        if mine.get(name) != other.get(name):
            yield (
                f"attribute {name} is {_shown(mine.get(name))},"
                f" the reference's {_shown(other.get(name))}"
            )


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
        weights = tested.weight(mine), reference.weight(other)
        if weights[0] is not None and weights[1] is not None:
            yield from _weights(mine, other, weights[0], weights[1])
        elif mine != other:
            yield f"it reads {_made(tested, mine)}, the reference {_made(reference, other)}"


def _weights(mine: str, other: str, got: Array, expected: Array) -> Iterator[str]:
    if got.shape != expected.shape:
        yield (
            f"weight '{mine}' is of shape {list(got.shape)}, the reference's '{other}'"
            f" {list(expected.shape)}"
        )
    elif got.tobytes() != expected.tobytes():
        size = largest_finite(expected)
        share = largest(abs_error(got, expected)) / size if size else np.inf
        which = f"'{mine}'" if mine == other else f"'{mine}', in the reference '{other}',"
        yield f"weight {which} differs by up to {share:.2g} of its largest value"


def _made(graph: WeightedGraph, value: str) -> str:
    node = graph.maker(value)
    return f"'{value}'" if node is None else f"'{value}' (of {node.op_type})"
