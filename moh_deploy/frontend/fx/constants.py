"""Values that are known before the model runs."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.graph import reads_shape_only


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

    def name(self, node: Node) -> str | None:
        """Return what the model calls it; None for any other node."""
        return self._names.get(node.name)


class StoredNodes:
    """Tells which nodes' values follow from parameters, buffers and constant tensors alone.

    Args:
        graph: It may grow later.
    """

    def __init__(self, graph: Graph, constant: Constants) -> None:
        self._constant = constant
        self._stored: dict[Node, bool] = {}
        for node in graph.nodes:  # in order, so that asking for one never goes deep
            self(node)

    def __call__(self, node: Node) -> bool:
        if node not in self._stored:
            self._stored[node] = self._follows(node)
        return self._stored[node]

    def _follows(self, node: Node) -> bool:
        # An operator without inputs may be `arange` of a number, but also `rand`: neither is
        # stored.
        sources = node.all_input_nodes
        if node.op != "call_function":
            return self._constant(node) is not None
        if not sources or is_random(node) or reads_shape_only(node):
            return False
        return all(map(self, sources))


def is_random(node: Node) -> bool:
    """True for an operator that may draw random numbers, whether it does so here or not."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags
    )
