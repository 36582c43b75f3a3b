"""Cut a graph down to what makes some of its values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from moh_deploy.graph.drop_unread import drop_unread
from moh_deploy.package.switches import reads


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
