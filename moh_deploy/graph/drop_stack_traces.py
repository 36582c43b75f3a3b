"""Drop the lines of source that torch's exporter notes at each node."""

from __future__ import annotations

import onnx_ir as ir

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def drop_stack_traces(model: ir.Model) -> bool:
    """Remove absolute paths and lines of the author's code: a package is handed to others."""
    nodes = [*model.graph.all_nodes()]
    nodes += [node for function in model.functions.values() for node in function.all_nodes()]
    traces = [node.metadata_props.pop(_STACK_TRACE, None) for node in nodes]
    return any(trace is not None for trace in traces)
