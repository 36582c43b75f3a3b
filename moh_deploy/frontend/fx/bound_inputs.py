"""Take the inputs out of a program that are no tensors: None, a bool, a number.

torch.export keeps them as placeholders, though the program was traced for their values and takes no
others.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec
from torch.utils._pytree import tree_leaves, tree_structure


def is_bound(spec: InputSpec) -> bool:
    """Whether an input of a program is a constant."""
    return spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)


def drop_bound_inputs(program: ExportedProgram) -> None:
    """Drop the placeholders of constant inputs; the others become positional arguments."""
    graph, signature = program.graph_module.graph, program.graph_signature
    bound = [spec for spec in signature.input_specs if is_bound(spec)]
    if not bound:
        return
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for spec in bound:
        graph.erase_node(nodes[spec.arg.name])  # no node reads it: its value is in their arguments
        signature.input_specs.remove(spec)
    program.graph_module.recompile()
    names = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    root = program.module_call_graph[0]
    assert root.signature is not None  # the call of the whole program has one
    in_spec = tree_structure(((0,) * len(names), {}))
    root.signature = replace(root.signature, in_spec=in_spec, forward_arg_names=names)
    if program.example_inputs is not None:
        leaves = tree_leaves(program.example_inputs)
        program.example_inputs = (tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)), {})
