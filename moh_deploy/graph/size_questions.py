"""Find the operators that ask whether inputs have one certain size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from moh_deploy.package.router_nodes import SIZES, makers_of

# What computes sizes of sizes: integers that hang on shapes alone.
_ARITHMETIC = (
    *("Add", "Cast", "Concat", "Constant", "Div", "Flatten", "Gather", "Identity", "Max", "Min"),
    *("Mod", "Mul", "Neg", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze"),
)


@dataclass(frozen=True)
class SizeQuestion:
    """An Equal of sizes of the inputs and constants.

    Attributes:
        value: What it makes.
        node: The node.
        sizes: The constants.
    """

    value: str
    node: onnx.NodeProto
    sizes: tuple[int, ...]


def size_questions(graph: onnx.GraphProto) -> Iterator[SizeQuestion]:
    """Yield the nodes of the main graph that are asked of nothing but sizes."""
    makers = makers_of(graph)
    constants = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                # Exporters write numbers as initializers or as Constant nodes.
                constants[node.output[0]] = attribute.t
    # Shape(x) -> Gather -> Equal 1, say.
    for node in graph.node:
        if node.op_type == "Equal" and all(
            _is_size(name, makers, constants) for name in node.input
        ):
            known = [constants[name] for name in node.input if name in constants]
            numbers = [np.ravel(numpy_helper.to_array(tensor)).tolist() for tensor in known]
            sizes = tuple(int(number) for group in numbers for number in group if number > 0)
            # An Equal of constants alone has one answer at every size.
            if sizes and len(known) < len(node.input):
                yield SizeQuestion(node.output[0], node, sizes)


def _is_size(
    value: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> bool:
    if value in constants:
        return True
    node = makers.get(value)
    if node is None or node.op_type not in (*SIZES, *_ARITHMETIC):
        return False
    return node.op_type in SIZES or all(_is_size(name, makers, constants) for name in node.input)
