"""Compute once what a program computes twice, such as a layer that is run twice on the same tokens.

torch.onnx merges it in any case, and would leave one attention of two layers. Numbers that are
written into the code (`torch.tensor(0.0)`) are another constant in every run of it: those that are
equal are one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.constants import is_random
from moh_deploy.frontend.fx.graph import argument, is_tensor, let_read, op

_MOST_ELEMENTS = 1024


def merge_equal(program: ExportedProgram) -> None:
    """Let what reads equal values read the first of them; one that is an output becomes a copy."""
    graph = program.graph_module.graph
    _merge_constants(program)
    for node, same in merge_calls(graph, _is_function):
        # Names of outputs are the program's: the node stays.
        if is_tensor(node):
            node.target, node.args, node.kwargs = torch.ops.aten.clone.default, (same,), {}


def _is_function(node: Node) -> bool:
    """True for a call that gives the same each time."""
    drops_none = op(node) == "scaled_dot_product_attention" and not argument(node, "dropout_p")
    return drops_none or not is_random(node)


def merge_calls(graph: Graph, is_merged: Callable[[Node], bool]) -> list[tuple[Node, Node]]:
    """Leave the first of equal calls of an operator, and those that are outputs.

    Args:
        is_merged: Says which calls may be compared with others.

    Returns:
        Each output that an earlier call equals, and that call.
    """
    first: dict[str, Node] = {}
    outputs: list[tuple[Node, Node]] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_merged(node):
            continue
        same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if same is node:
            continue
        let_read(node, same)
        if node.users:
            outputs.append((node, same))
        else:
            # Nothing would erase it later where torch takes it for random: attention, say.
            graph.erase_node(node)
    return outputs


def _merge_constants(program: ExportedProgram) -> None:
    names = program.graph_signature.inputs_to_lifted_tensor_constants
    first: dict[Hashable, Node] = {}
    for node in program.graph_module.graph.find_nodes(op="placeholder"):
        value = program.constants.get(names.get(node.name, ""))
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            continue
        if value.numel() <= _MOST_ELEMENTS:
            # As text NaN is itself, and -0.0 is not 0.0.
            content = (value.dtype, value.shape, str(value.tolist()))
            let_read(node, first.setdefault(content, node))
