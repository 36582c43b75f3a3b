"""MoHRouter as a torch operator, and its translation to ONNX."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from moh_deploy.frontend.torch_ops.onnx_ops import Value, moh_opset
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

_SCHEMA = (
    "(Tensor? routed_logits, Tensor? shared_logits, Tensor? stage_logits, "
    "int top_k, int num_shared_heads, str gate_mode) -> Tensor"
)


@torch.library.custom_op("moh::router", mutates_args=(), schema=_SCHEMA)
def router(
    routed_logits: Tensor | None,
    shared_logits: Tensor | None,
    stage_logits: Tensor | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Tensor:
    """MoHRouter, see `docs/ops.md`.

    Args:
        routed_logits: [B, S, R], or None where all heads are shared.
        shared_logits: [B, S, Sh], or None for at most one shared head or mask gates.
        stage_logits: [B, S, 2]: the first stage's weight of shared and of routed heads; None for
            no first stage.

    Returns:
        Gates [B, S, Sh + R], shared heads first.
    """
    present = next(x for x in (routed_logits, shared_logits, stage_logits) if x is not None)
    precise = torch.promote_types(present.dtype, torch.float32)
    gates: list[Tensor] = []
    if num_shared_heads and shared_logits is not None:
        gates.append(shared_logits.to(precise).softmax(dim=-1) * num_shared_heads)
    elif num_shared_heads:
        gates.append(torch.ones(*present.shape[:-1], num_shared_heads, dtype=precise))
    if routed_logits is not None:
        gates.append(_routed_gates(routed_logits.to(precise).softmax(dim=-1), top_k, gate_mode))
    if stage_logits is not None:
        stages = stage_logits.to(precise).softmax(dim=-1) * 2
        gates = [gate * stages[..., i : i + 1] for i, gate in enumerate(gates)]
    return torch.cat(gates, dim=-1).to(present.dtype)


def _routed_gates(scores: Tensor, top_k: int, gate_mode: str) -> Tensor:
    order = scores.sort(dim=-1, descending=True, stable=True).indices  # ties: lowest head first
    chosen = torch.zeros_like(scores).scatter(-1, order[..., :top_k], 1.0)
    if gate_mode == "mask":
        return chosen
    kept = scores * chosen
    eps = torch.finfo(torch.float32).eps
    return kept / kept.sum(dim=-1, keepdim=True).clamp(min=eps) * top_k


@router.register_fake
def _(
    routed_logits: Tensor | None,
    shared_logits: Tensor | None,
    stage_logits: Tensor | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Tensor:
    present = next(x for x in (routed_logits, shared_logits, stage_logits) if x is not None)
    candidates = 0 if routed_logits is None else routed_logits.shape[-1]
    return present.new_empty(*present.shape[:-1], num_shared_heads + candidates)


def translate(
    routed_logits: Value | None,
    shared_logits: Value | None,
    stage_logits: Value | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Value:
    logits = [routed_logits, shared_logits, stage_logits]
    while logits[-1] is None:
        logits.pop()
    result = moh_opset.MoHRouter(
        *logits,
        top_k=top_k,
        num_shared_heads=num_shared_heads,
        gate_mode=gate_mode,
        **PLUGIN_ATTRIBUTES,
    )
    return cast(Value, result)
