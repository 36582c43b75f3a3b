"""Find outputs of a model that may be the memory of an input: caches that are written in place."""

from __future__ import annotations

import onnx


def written_buffers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the name of each output that is an input with something written into it (by
    TensorScatter) to the name of that input.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - weights
    outputs = {value.name for value in graph.output}
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "TensorScatter" and node.domain in ("", "ai.onnx")
        if node.input[0] in inputs and node.output[0] in outputs
    }
