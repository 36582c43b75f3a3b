"""A float32 model in float64: what it would compute if nothing were rounded."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.package.graph_nodes import reads
from moh_deploy.system.npz import Array

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a float32 model, function bodies included, that computes in float64."""
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    del wide.graph.value_info[:]
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _DOUBLE
    for tensor in wide.graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(wide.graph.node)
    for function in wide.functions:
        del function.value_info[:]
        _widen_nodes(function.node)
    return wide


class WideRun:
    """Runs a widened model with ONNX's reference implementation."""

    def __init__(self, model: onnx.ModelProto, outputs: Iterable[str]) -> None:
        wide = widened(model)
        self._outputs = list(outputs)
        present = {item.name for item in wide.graph.output}
        wide.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in self._outputs if name not in present
        )
        _sort(wide.graph)
        self._evaluator = ReferenceEvaluator(wide)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {
            name: value.astype(np.float64) if value.dtype == np.float32 else value
            for name, value in inputs.items()
        }
        with np.errstate(all="ignore"):  # a query that sees no key is NaN on its way
            return dict(zip(self._outputs, self._evaluator.run(self._outputs, feeds), strict=True))


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node behind those that make what it reads: this implementation does not sort."""
    made = {name for node in graph.node for name in node.output}
    waiting, known, in_order = list(graph.node), set[str](), list[onnx.NodeProto]()
    while waiting:
        ready = [node for node in waiting if not (set(reads(node)) & made) - known]
        assert ready, "the graph has a cycle"
        known |= {name for node in ready for name in node.output}
        in_order += ready
        waiting = [node for node in waiting if not any(node is item for item in ready)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in in_order]
    del graph.node[:]
    graph.node.extend(copies)


def _widen_nodes(nodes: Any) -> None:
    added: list[tuple[int, onnx.NodeProto]] = []
    for index, node in enumerate(nodes):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _widen_nodes(attribute.g.node)
            elif attribute.name in ("to", "dtype") and attribute.i == _FLOAT:
                attribute.i = _DOUBLE
            elif attribute.HasField("t"):
                _widen_tensor(attribute.t)
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = helper.make_tensor("value", _DOUBLE, [1], [0.0])
            node.attribute.append(helper.make_attribute("value", zero))
        if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
            narrow = f"{node.output[0]}.narrow"
            cast = helper.make_node("Cast", [narrow], [node.output[0]], to=_DOUBLE)
            node.output[0] = narrow
            added.append((index + 1, cast))
    for at, cast in reversed(added):
        nodes.insert(at, cast)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _FLOAT:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
