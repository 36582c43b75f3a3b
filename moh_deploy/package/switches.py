"""Find nodes whose domain depends on sizes, in the branches that hold them.

Such a node stands twice, in the branches of an `If`: for `moh` with its name, for `moh.dense` as
its twin. The name of the condition says when which of them runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

CONDITION_PREFIX = "moh.sizes/"


def dense_twin(name: str) -> str:
    """Return the name of the node of `moh.dense` that stands in for a node at some sizes."""
    return f"{name} (dense)"


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads, those that the graphs in it read included."""
    yield from filter(None, node.input)  # an optional input has no name
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from reads(inner)
            yield from (value.name for value in attribute.g.output)


def switch_rules(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the name of each node in a branch to the text of its `NodeRule`."""
    # The node in the branch for kernels has the name that the manifest knows, its twin another one.
    return {
        inner.name: node.input[0].removeprefix(CONDITION_PREFIX)
        for node in graph.node
        if node.op_type == "If" and node.input[0].startswith(CONDITION_PREFIX)
        for attribute in node.attribute
        for inner in attribute.g.node
    }
