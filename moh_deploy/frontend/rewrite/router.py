"""Put a MoHRouter beside the router it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::router
from moh_deploy.frontend.recognize.axes import Size, size_of
from moh_deploy.frontend.recognize.graph import rank, shape, tensor
from moh_deploy.frontend.recognize.routers.forms import Router
from moh_deploy.frontend.rewrite.builder import GraphBuilder

aten = torch.ops.aten


def insert_router(builder: GraphBuilder, router: Router, gates: Node) -> Node:
    """Insert the MoHRouter for a router of a published form.

    Args:
        gates: [..., H], what the model's own router computes.

    Returns:
        A tensor of the shape of `gates`, from the MoHRouter.
    """
    logits = [
        None if node is None else _per_token(builder, node, gates)
        for node in (router.routed_logits, router.shared_logits, router.stage_logits)
    ]
    routed = builder.call(
        torch.ops.moh.router.default,
        *logits,
        router.top_k,
        router.num_shared_heads,
        router.gate_mode,
    )
    if tensor(routed).dtype != tensor(gates).dtype:  # a mask of whole numbers, say
        routed = builder.call(aten.to.dtype, routed, tensor(gates).dtype)
    if rank(gates) == 3:
        return routed
    return builder.call(aten.reshape.default, routed, _sizes(builder, shape(gates)))


def _per_token(builder: GraphBuilder, logits: Node, gates: Node) -> Node:
    """Logits as [B, S, R], the rows in the order of the gates' rows."""
    rows = shape(gates)[:-1]
    if rank(gates) != 3:
        rows = (size_of(1), math.prod(rows, start=size_of(1)))
    if rank(logits) == 3 and shape(logits)[:2] == rows:
        return logits
    wanted = (*rows, shape(logits)[-1])
    return builder.call(aten.reshape.default, logits, _sizes(builder, wanted))


def _sizes(builder: GraphBuilder, extents: Sequence[Size]) -> list[int | Node]:
    """Numbers, nodes, and -1 for the first size that is not a number."""
    sizes: list[int | Node] = []
    for extent in extents:
        if extent.is_Integer:
            sizes.append(int(extent))
        else:
            sizes.append(-1 if -1 not in sizes else builder.size(extent))
    return sizes
