"""Put a MoHRouter beside the router it computes."""

from __future__ import annotations

import torch
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::router
from moh_deploy.frontend.recognize.graph import rank, shape
from moh_deploy.frontend.recognize.routers.forms import Router
from moh_deploy.frontend.rewrite.builder import GraphBuilder

aten = torch.ops.aten


def insert_router(builder: GraphBuilder, router: Router, gates: Node) -> Node:
    """Insert the MoHRouter for a router of a published form.

    Args:
        gates: [B, S, H], what the model's own router computes.

    Returns:
        The MoHRouter, [B, S, H].
    """
    logits = [
        None if node is None else _per_token(builder, node, gates)
        for node in (router.routed_logits, router.shared_logits, router.stage_logits)
    ]
    return builder.call(
        torch.ops.moh.router.default,
        *logits,
        router.top_k,
        router.num_shared_heads,
        router.gate_mode,
    )


def _per_token(builder: GraphBuilder, logits: Node, gates: Node) -> Node:
    """Logits as [B, S, R]; routers often work on flattened tokens."""
    if rank(logits) == 3 and shape(logits)[:2] == shape(gates)[:2]:
        return logits
    batch, tokens = shape(gates)[:2]
    if batch.is_Integer and not tokens.is_Integer:
        leading: list[object] = [int(batch), -1]
    else:
        leading = [-1, int(tokens) if tokens.is_Integer else builder.size(tokens)]
    candidates = int(shape(logits)[-1])
    return builder.call(aten.reshape.default, logits, [*leading, candidates])
