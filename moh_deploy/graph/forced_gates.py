"""A variant of a model in which the gates of its layers are inputs.

The recorded form of a layer's gates may be a view of what its router makes, and attention may read
another one. So the gates are fed where the router made them, behind the views taken backwards, and
all that reads them there reads what was fed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from moh_deploy.ops import OPS
from moh_deploy.package.graph_nodes import all_nodes, computed_from, dense_twin, makers_of, reads
from moh_deploy.package.interface import LayerInfo
from moh_deploy.system.npz import Array

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


# An input of a graph that stands in for an inner value.


def add_input(graph: onnx.GraphProto, name: str, dtype: np.dtype[Any], *, rank: int = 3) -> None:
    """Let a graph take a value of any sizes; of rank 3 unless said: [B, S, H]."""
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph.input.append(helper.make_tensor_value_info(name, element, [None] * rank))


GateTypes = Mapping[str, np.dtype[Any]]
"""Name of each layer's gates to the dtype that they are fed in."""

# Operators that move gates without changing them, and that can be taken backwards.
_VIEWS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

GATES_INPUT = {
    spec.name: place
    for spec in OPS.values()
    for place, given in enumerate(spec.inputs)
    if given.name == "gates"
}
"""Operator to the place of the gates among its inputs."""


def forced_gates(gates: str) -> str:
    """Return the name of the input that holds the gates to be used."""
    return f"{gates}.forced"


def computed_gates(gates: str) -> str:
    """Return the name of what a router computes where other gates are fed to the model."""
    return f"{gates}.computed"


def unforceable_layers(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> list[str]:
    """Return the paths of layers whose attention would not read what is fed."""
    nodes = list(all_nodes(graph))
    return [layer.path for layer in layers if not _reaches_attention(nodes, layer)]


def gate_views(graph: onnx.GraphProto, layer: LayerInfo) -> list[onnx.NodeProto]:
    """Return the views that lead from what a router makes to the layer's gates, the last first."""
    return _views(makers_of(graph.node), layer.gates)


def routed_value(graph: onnx.GraphProto, layer: LayerInfo) -> str:
    """Return the name of what a router makes, in front of the views that lead to the gates."""
    return _root(gate_views(graph, layer), layer.gates)


def force_gates(graph: onnx.GraphProto, gates: GateTypes) -> bool:
    """Make inputs `forced_gates(name)` of the gates, and call what is computed
    `computed_gates(name)`.

    Args:
        graph: Changed in place. Nodes are added at its end: ONNX Runtime sorts them.
        gates: Name of the gates [B, S, H] of each layer to their dtype.
    """
    # router -> root -> views -> gates   becomes   router -> root -> views -> gates.computed
    #                                             gates.forced -> views backwards -> root.fed
    # and readers of the root, the views among them, read root.fed.
    makers = makers_of(graph.node)
    views = {name: _views(makers, name) for name in gates}
    # What the router made, from which attention may read another view.
    roots = {name: _root(chain, name) for name, chain in views.items()}
    added = [node for name in gates for node in _feed(name, roots[name], views[name])]
    # Readers of the root read what was fed; the views that led to the gates now show it, too.
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in roots.values():
                node.input[index] = _fed(name)
    fed: dict[str, onnx.NodeProto] = {}
    for node in added:  # Layers may share a router; their reference gates are the same.
        fed.setdefault(node.output[0], node)
    graph.node.extend(fed.values())
    for name, dtype in gates.items():
        add_input(graph, forced_gates(name), dtype)
    return bool(gates)


def _feed(name: str, root: str, views: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield copies of the views of what is computed, and the views backwards of what is fed."""
    # The views of what is computed are copied: the originals carry what is fed from now on. Each
    # copy is asked for the shape that it reads, which the way back has to restore.
    made = root
    shapes: list[str] = []
    for step, view in enumerate(reversed(views)):
        copy = onnx.NodeProto.FromString(view.SerializeToString())
        # A Reshape backwards needs the shape in front of it, which may be dynamic.
        shapes.append(f"{name}.shape_{step}")
        yield helper.make_node("Shape", [made], [shapes[-1]])
        copy.name, copy.input[0], copy.output[0] = f"{name}.view_{step}", made, f"{name}.{step}"
        made = copy.output[0]
        yield copy
    # What the router computes goes on being computed, under another name.
    yield helper.make_node("Identity", [made], [computed_gates(name)])
    value = forced_gates(name)
    # The last view first, each with the shape that it had in front of it.
    for step, view in enumerate(views):
        back = f"{name}.back_{step}"
        if view.op_type == "Transpose":
            order = next(attribute.ints for attribute in view.attribute if attribute.name == "perm")
            perm = np.argsort(order).tolist()
            yield helper.make_node("Transpose", [value], [back], perm=perm)
        else:  # keeps the order of elements. allowzero, since a batch may be empty.
            yield helper.make_node("Reshape", [value, shapes[-1 - step]], [back], allowzero=1)
        value = back
    yield helper.make_node("Identity", [value], [_fed(root)])


def _reaches_attention(nodes: Sequence[onnx.NodeProto], layer: LayerInfo) -> bool:
    """Tell whether the layer's attention computes its gates, in whatever way, from what is fed."""
    # Attention need not read the recorded gates themselves: a cast or another view of the root
    # does.
    makers = makers_of(nodes)
    views = _views(makers, layer.gates)
    root = _root(views, layer.gates)
    named = (layer.node, layer.query_projection, layer.output_projection)
    names = {twin for name in named if name for twin in (name, dense_twin(name))}
    readers = [node for node in nodes if node.name in names]
    # Attention of plain operators: something besides the views has to read the root.
    if not readers:
        return any(root in node.input for node in nodes if node not in views)
    read = [node.input[GATES_INPUT[node.op_type]] for node in readers]
    # Nodes of the layer read the gates through operators that weigh them, say.
    return all(root == name or root in dict(computed_from(name, makers)) for name in read)


def _views(makers: Mapping[str, onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """Return the views that make a value, the last first."""
    views: list[onnx.NodeProto] = []
    while name in makers and makers[name].op_type in _VIEWS:
        views.append(makers[name])
        name = makers[name].input[0]
    return views


def _root(views: Sequence[onnx.NodeProto], gates: str) -> str:
    return views[-1].input[0] if views else gates


def _fed(root: str) -> str:
    return f"{root}.fed"


# A variant of a model without routers: what they make is fed, and all that only made it is gone.
#
# It is fed where the router made it, behind the views of the recorded form, so that nothing of the
# router is needed to know a shape.


def routed_values(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> list[str]:
    """Return the names of what the routers of the layers make, each once."""
    computed = {name for node in graph.node for name in node.output}
    # In front of the views: behind them the shape would have to be known from the router.
    names = [routed_value(graph, layer) for layer in layers]
    return list(dict.fromkeys(name for name in names if name in computed))


def fixed_input(routed: str) -> str:
    """Return the name of the input in place of what a router makes."""
    return f"{routed}.fixed"


def fix_routing(graph: onnx.GraphProto, routed: Mapping[str, Array]) -> bool:
    """Make inputs of what routers make, and drop the nodes that nothing reads any more.

    Args:
        graph: Changed in place.
        routed: Name of what a router makes to an array of the same dtype and rank.
    """
    # Nodes in branches read values of the main graph by name: they have to read the input as well.
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in routed:
                node.input[index] = fixed_input(name)
    for name, array in routed.items():
        add_input(graph, fixed_input(name), array.dtype, rank=array.ndim)
    return drop_unread(graph) or bool(routed)


def why_not_fixed(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> str | None:
    """Return why a model cannot run without its routers; None if it can.

    Args:
        graph: Not to be used afterwards.
    """
    routed = routed_values(graph, layers)
    if not routed:
        return "no layer computes its gates"
    paths = unforceable_layers(graph, layers)
    if paths:
        named = ", ".join(f"'{path}'" for path in paths)
        return f"attention does not compute with the recorded gates in {named}"
    # Tried out: what still makes a router's result afterwards makes something else of the model.
    fix_routing(graph, dict.fromkeys(routed, np.zeros(())))
    kept = [name for node in graph.node for name in node.output if name in routed]
    if kept:
        return f"the model's outputs are made of what routers compute, too: {', '.join(kept)}"
    return None
