"""Find the MoHRouter node that makes a layer's gates."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import onnx

from moh_deploy.ops import op_names
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package.interface import LayerInfo

# Find nodes whose domain depends on sizes, in the branches that hold them.
#
# Such a node stands twice, in the branches of an `If`: for `moh` with its name, for `moh.dense` as
# its twin. The name of the condition says when which of them runs.

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


CONTRACTIONS = ("Conv", "Einsum", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits")
"""Operators that mix what they read with weights: nothing between a router and the gates does."""

SIZES = ("Shape", "Size")
"""Operators that know nothing of what they read but how large it is."""


def router_nodes(graph: onnx.GraphProto, layers: tuple[LayerInfo, ...]) -> tuple[str | None, ...]:
    """Return the name of each layer's MoHRouter node; None for a router of plain operators, and
    where `lost_at` says that it is missing."""
    makers = makers_of(graph.node)
    return tuple(
        # The manifest knows whether there is one: a search without would find a neighbour's.
        _router_of(layer.gates, makers) if layer.router_replaced else None
        for layer in layers
    )


def lost_at(graph: onnx.GraphProto, layer: LayerInfo) -> str:
    """Name the operators that stand where a layer's MoHRouter should be.

    Args:
        layer: A layer of a replaced router that `router_nodes` does not find.
    """
    makers = makers_of(graph.node)
    met: list[str] = []
    value = layer.gates
    # Along the first inputs, to name what a reader sees when looking at the graph.
    while value in makers and not ends_the_way(makers[value]):
        met.append(operator_text(makers[value]))
        value = next(iter(reads(makers[value])), "")
    end = operator_text(makers[value]) if value in makers else f"'{value}', which no node makes"
    return f"{' <- '.join(met)} <- {end}" if met else end


def operator_text(node: onnx.NodeProto) -> str:
    """Return `Where 'model.Where#2'`: an operator and its node, or what a nameless one makes."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def makers_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Return each value that nodes make to its node."""
    return {name: node for node in nodes for name in node.output}


def is_router(node: onnx.NodeProto) -> bool:
    """Tell whether a node is a MoHRouter."""
    return (base_domain(node.domain), node.op_type) == (KERNEL_DOMAIN, op_names.ROUTER)


def computed_from(
    value: str, makers: Mapping[str, onnx.NodeProto]
) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yield a value and what it is computed from, each with its maker, the nearest first.

    What a MoHRouter, another custom operator or a contraction reads is not looked at: that is made
    of whole tokens, and leads to other layers. Nor is a value whose size alone is known.
    """
    # Breadth first: of two routers on the way, such as those of layers that share gates, the
    # nearest.
    found, waiting = {value}, deque([value])
    while waiting:
        name = waiting.popleft()
        if name not in makers:
            continue
        node = makers[name]
        yield name, node
        if ends_the_way(node) or node.op_type in SIZES:
            continue
        for read in reads(node):
            if read not in found:
                found.add(read)
                waiting.append(read)


def _router_of(gates: str, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    return next((node.name for _, node in computed_from(gates, makers) if is_router(node)), None)


def ends_the_way(node: onnx.NodeProto) -> bool:
    """Tell whether a node mixes tokens, or is a custom operator: nothing behind it is looked at."""
    # An If ends the way, too, if a branch of it does.
    inner = [part for attribute in node.attribute for part in all_nodes(attribute.g)]
    return any(
        part.op_type in CONTRACTIONS or base_domain(part.domain) is not None
        for part in (node, *inner)
    )
