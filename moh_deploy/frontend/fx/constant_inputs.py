"""Add tensors that are computed at export to a program."""

from __future__ import annotations

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from moh_deploy.frontend.fx.graph import fake_mode


def add_constant(program: ExportedProgram, name: str, value: Tensor) -> Node:
    """Return a new node that has this value.

    Args:
        name: Of the node; a number is added where it is taken.
    """
    graph = program.graph_module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        node: Node = graph.placeholder(name)
    node.target = node.name
    node.meta["val"] = fake_mode(graph).from_tensor(value, static_shapes=True)
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=node.name), node.name)
    program.graph_signature.input_specs.insert(0, spec)
    program.constants[node.name] = value.detach()
    return node
