"""Cut a graph down to what makes some of its values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from moh_deploy.package.switches import reads

# Drop what an edit has left without a reader.


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


def keep_only(graph: onnx.GraphProto, values: Sequence[str]) -> bool:
    """Make these values the outputs of a graph, and drop all that they do not need."""
    before = [value.name for value in (*graph.output, *graph.input)]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    dropped = drop_unread(graph)
    read = {name for node in graph.node for name in reads(node)}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)
    return dropped or [value.name for value in (*graph.output, *graph.input)] != before
