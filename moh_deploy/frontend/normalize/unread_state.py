"""Leave out state that a model changes and no output ever depends on.

Routers keep count in buffers: how often a head was chosen, a moving average of the load. Training
code reads them. Of a package nobody could, and what it computes does not depend on them.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from moh_deploy.frontend.fx.graph import ancestors


def drop_unread_state(program: ExportedProgram) -> None:
    """Drop changes of buffers from a functional program's outputs if its results read none of them.

    A buffer that the results do read, or that is written into one of them, is state: all changes
    stay then, and are reported elsewhere.
    """
    signature = program.graph_signature
    changed = signature.buffers_to_mutate
    if not changed:
        return
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = list(zip(signature.output_specs, output.args[0], strict=True))
    kept = [(spec, node) for spec, node in results if spec.kind is not OutputKind.BUFFER_MUTATION]
    read = ancestors(*(node for _, node in kept if isinstance(node, Node)))
    if any(signature.inputs_to_buffers.get(node.name) in changed.values() for node in read):
        return
    output.args = (tuple(node for _, node in kept),)
    signature.output_specs[:] = [spec for spec, _ in kept]
