"""A variant of a model that computes bfloat16, or float16, as hardware does, on a runtime that does
not.

Every operator that reads or makes that dtype computes in float32, and its results are rounded: what
hardware does that multiplies 16 bits and accumulates in float32. Values keep their names and
dtypes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from moh_deploy.errors import PackageError
from moh_deploy.package.graph_nodes import all_nodes

# They move such values or make them of a number: every runtime has them.
_NATIVE = ("Cast", "Constant", "If", "Loop", "Scan")

# A shape has at most so many numbers; larger constants are weights.
_SMALL = 64

_DTYPE_ATTRIBUTES = ("dtype", "output_dtype")

EmulatedDtype = Literal["bfloat16", "float16"]

_ELEMENT: Mapping[EmulatedDtype, int] = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
}


def computes_in(model: onnx.ModelProto, dtype: EmulatedDtype) -> bool:
    """Tell whether an operator of the graph reads or makes this dtype."""
    element, graph = _ELEMENT[dtype], model.graph
    # Most models mention it nowhere, and inferring types takes time.
    values = (*graph.input, *graph.output)
    attributes = (attribute for node in all_nodes(graph) for attribute in node.attribute)
    if not (
        any(weight.data_type == element for weight in graph.initializer)
        or any(value.type.tensor_type.elem_type == element for value in values)
        or any(attr.i == element or attr.t.data_type == element for attr in attributes)
    ):
        return False
    types = _element_types(model)
    return any(
        types.get(name) == element
        for node in all_nodes(model.graph)
        if node.op_type not in _NATIVE
        for name in (*node.input, *node.output)
    )


def emulate(model: onnx.ModelProto, dtype: EmulatedDtype) -> bool:
    """Compute a dtype in float32, and round every result to it.

    Args:
        model: Changed in place. Its weights may not be loaded.

    Raises:
        PackageError: The dtype of a value cannot be inferred.
    """
    types = _element_types(model)
    # A value of unknown dtype might be one that has to be rounded.
    for node in all_nodes(model.graph):
        for name in node.output:
            if name and name not in types:
                raise PackageError(
                    f"{dtype} cannot be emulated: the dtype of '{name}' ({node.op_type}) cannot be"
                    " inferred."
                )
    element = _ELEMENT[dtype]
    return _emulate(
        model.graph, {name for name, type_ in types.items() if type_ == element}, element
    )


def _emulate(graph: onnx.GraphProto, low: set[str], element: int, depth: int = 0) -> bool:
    modified = False
    # x -> Op -> y   becomes   x -> Cast -> x.wide -> Op in float32 -> y.exact -> Cast -> y
    # A value is widened once, in front of its first reader.
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}  # of this graph; a branch has its own, by other names
    for node in [
        onnx.NodeProto.FromString(original.SerializeToString()) for original in graph.node
    ]:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                modified |= _emulate(attribute.g, low, element, depth + 1)
        # Moving a number, or casting it, rounds nothing that is not rounded already.
        if node.op_type in _NATIVE or not low.intersection((*node.input, *node.output)):
            nodes.append(node)
            continue
        modified = True
        # One cast to float32 a value, however many read it.
        for name in low.intersection(node.input).difference(wide):
            wide[name] = f"{name}.wide_{depth}"
            nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
        # The rounded result takes the value's name, so readers and outputs find what they look for.
        rounded = [name for name in node.output if name in low]
        node.input[:] = [wide[name] if name in low else name for name in node.input]
        node.output[:] = [_exact(name) if name in low else name for name in node.output]
        for attribute in node.attribute:
            # An operator that makes values of this dtype would else still make the low one.
            if attribute.name in _DTYPE_ATTRIBUTES and attribute.i == element:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == element:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value))
        nodes += [node, *(_cast(_exact(name), name, element) for name in rounded)]
    del graph.node[:]
    graph.node.extend(nodes)
    return modified


def _cast(name: str, output: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [output], to=to)


def _exact(name: str) -> str:
    """Return the name of a result before it is rounded."""
    return f"{name}.exact"


def _element_types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return the dtype of each value of the graph and of the branches in it."""
    graph = model.graph
    # Without the numbers of weights: types hang on none, and shapes on those of small ones alone.
    weights = (
        weight
        if math.prod(weight.dims) <= _SMALL
        else onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
        for weight in graph.initializer
    )
    light = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=onnx.GraphProto(
            name=graph.name,
            node=graph.node,
            input=graph.input,
            output=graph.output,
            value_info=graph.value_info,
            initializer=weights,
        ),
    )
    # Data propagation finds shapes that are computed from sizes.
    return dict(_types(shape_inference.infer_shapes(light, data_prop=True).graph))


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, value.type.tensor_type.elem_type
    for weight in graph.initializer:
        yield weight.name, weight.data_type
    # Inference writes the types of values in branches into the branches.
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _types(attribute.g)
