"""Add tensors that are computed at export to a program."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node


def add_constant(program: ExportedProgram, name: str, value: Tensor) -> Node:
    """Return a new node that has this value.

    Args:
        name: Of the node; a number is added where it is taken.
    """
    graph = program.graph_module.graph
    fakes = (node.meta.get("val") for node in graph.nodes)
    mode = next(fake.fake_mode for fake in fakes if isinstance(fake, FakeTensor))
    with graph.inserting_before(next(iter(graph.nodes))):
        node: Node = graph.placeholder(name)
    node.target = node.name
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=node.name), node.name)
    program.graph_signature.input_specs.insert(0, spec)
    program.constants[node.name] = value.detach()
    return node
