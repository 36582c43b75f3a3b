"""A model's graph in another dtype: roughly, for builds whose numbers nobody looks at."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

_TYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
_FLOAT = onnx.TensorProto.FLOAT


def in_dtype(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """Return a copy whose float32 tensors have another dtype.

    Function bodies stay: they follow their inputs, and compute in float32 where they say so.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if dtype == "float32":
        return changed
    _change_graph(changed.graph, dtype)
    return changed


def _change_graph(graph: onnx.GraphProto, dtype: str) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _TYPES[dtype]
    for tensor in graph.initializer:
        _change_tensor(tensor, dtype)
    for node in graph.node:
        for attribute in node.attribute:
            _change_attribute(node, attribute, dtype)


def _change_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, dtype: str) -> None:
    if attribute.name in ("to", "dtype") and attribute.i == _FLOAT:
        attribute.i = _TYPES[dtype]
    if attribute.HasField("t"):
        _change_tensor(attribute.t, dtype)
    if attribute.HasField("g"):
        _change_graph(attribute.g, dtype)


def _change_tensor(tensor: onnx.TensorProto, dtype: str) -> None:
    if tensor.data_type != _FLOAT:
        return
    array = numpy_helper.to_array(tensor)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    with np.errstate(over="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))
