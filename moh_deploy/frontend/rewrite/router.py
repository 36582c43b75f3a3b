"""Put a MoHRouter beside the router it computes."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::router
from moh_deploy.frontend.recognize.axes import size_of
from moh_deploy.frontend.recognize.graph import rank, shape, tensor
from moh_deploy.frontend.recognize.routers.forms import Logits, Router
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
        None if one is None else _per_token(builder, _heads_last(builder, one), gates)
        for one in (router.routed_logits, router.shared_logits, router.stage_logits)
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
    return builder.call(aten.reshape.default, routed, builder.sizes(shape(gates)))


def _heads_last(builder: GraphBuilder, logits: Logits) -> Node:
    last = rank(logits.node) - 1
    if logits.dim == last:
        return logits.node
    order = [axis for axis in range(last + 1) if axis != logits.dim]
    return builder.call(aten.permute.default, logits.node, [*order, logits.dim])


def _per_token(builder: GraphBuilder, logits: Node, gates: Node) -> Node:
    """Logits as [B, S, R], the rows in the order of the gates' rows."""
    rows = shape(gates)[:-1]
    if rank(gates) != 3:
        rows = (size_of(1), math.prod(rows, start=size_of(1)))
    if rank(logits) == 3 and shape(logits)[:2] == rows:
        return logits
    wanted = (*rows, shape(logits)[-1])
    return builder.call(aten.reshape.default, logits, builder.sizes(wanted))
