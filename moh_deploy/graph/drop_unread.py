"""Drop what an edit has left without a reader."""

from __future__ import annotations

import onnx

from moh_deploy.package.switches import reads


def drop_unread(graph: onnx.GraphProto) -> bool:
    """Drop the nodes that nothing reads, and return whether there were any."""
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):  # readers come first
        if read.intersection(node.output):
            kept.append(node)
            read.update(reads(node))
    dropped = len(kept) < len(graph.node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return dropped
