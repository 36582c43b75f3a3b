"""Attention on tensors larger than what 32 bits can index: the emulator alone has run it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from tests.gpu.attention import KernelCall, Tensors, reference, with_gates
from tests.gpu.kernels import Bench
from tests.gpu.race import Expected
from tests.gpu.steps import Facts, Json, Wrong
from tests.gpu.workloads import AttentionShape


def far_apart(
    bench: Bench, shape: Mapping[str, Json], dtype: str, last_offset: int, tactic: str
) -> Facts:
    """Run an attention whose last token is `last_offset` elements behind the first one.

    Raises:
        Wrong: It computes something else than the same tensors close together.
    """
    sizes, kind = AttentionShape(**shape), getattr(torch, dtype)
    near = Tensors.draw(sizes, 0.75, kind, 2, bench.device.kind)[0]
    far = replace(
        near,
        query=_spread(near.query, last_offset),
        key=_spread(near.key, last_offset),
        value=_spread(near.value, last_offset),
        output=_spread(near.output, last_offset),
    )
    KernelCall(bench, far, tactic)()
    bench.device.synchronize()
    exact = reference(near)
    expected = Expected(exact, with_gates(exact, near.gates), bench.cases.tolerance(dtype))
    verdict = expected.judge(far.output, gated=True, ours=True)
    if not verdict["right"]:
        raise Wrong("offsets beyond 32 bits are wrong", verdict)
    return {}


def _spread(tensor: torch.Tensor, last_offset: int) -> torch.Tensor:
    """Copy a tensor [1, S, H, D] to where its tokens are far apart."""
    batch, tokens, heads, features = tensor.shape
    assert batch == 1
    stride = math.ceil(last_offset / (8 * (tokens - 1))) * 8  # in whole vectors
    room = torch.empty(
        stride * (tokens - 1) + heads * features, dtype=tensor.dtype, device=tensor.device
    )
    spread = room.as_strided(tensor.shape, (0, stride, features, 1))
    return spread.copy_(tensor)
