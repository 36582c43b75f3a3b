"""Values that are known before the model runs."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.recognize.graph import reads_shape_only


class Constants:
    """Looks up the value of a parameter, buffer or constant tensor of a program."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._values = {**program.state_dict, **program.constants}

    def __call__(self, node: Node) -> torch.Tensor | None:
        found = self._values.get(self._names.get(node.name, ""))
        return found if isinstance(found, torch.Tensor) else None


def stored_nodes(graph: Graph, constant: Constants) -> set[Node]:
    """Nodes whose values follow from parameters, buffers and constant tensors alone."""
    stored = {node for node in graph.nodes if constant(node) is not None}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and not is_random(node):
            known = all(source in stored for source in sources)
            if known and not reads_shape_only(node):
                stored.add(node)
    return stored


def is_random(node: Node) -> bool:
    """True for an operator that may draw random numbers, whether it does so here or not."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags
    )
