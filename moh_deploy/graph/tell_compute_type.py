"""Write into the nodes what kernels may round to, for runtimes that pass on no session entries."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops.op_names import ATTENTION, KERNEL_DOMAIN, base_domain
from moh_deploy.package import ComputeType

ATTRIBUTE = "compute_type"
"""No part of the op: a function body does not know it. docs/cpu-kernels.md says who reads it."""


def tell_compute_type(model: ir.Model, compute_type: ComputeType) -> bool:
    """Let attention nodes that run on kernels say what their products may be rounded to.

    Returns:
        Whether there is such a node.
    """
    nodes = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == ATTENTION and base_domain(node.domain) == KERNEL_DOMAIN
    ]
    for node in nodes:
        node.attributes[ATTRIBUTE] = ir.AttrString(ATTRIBUTE, compute_type)
    return bool(nodes)
