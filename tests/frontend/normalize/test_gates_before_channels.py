"""Gates of heads come first, gates of channels behind them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.plain_attention import is_attention
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

# Queries, keys, values and gates of channels [B, H, S, D], gates [B, H, S].
ARGUMENTS = tuple(
    torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(2, 4, 5, 3)] * 4 + [(2, 4, 5)])
)
Function = Callable[..., object]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def partners(function: Function) -> list[int]:
    """The last dimension of what each attention is multiplied with; results are what they were."""
    program = normalize(plain_trace(function, *ARGUMENTS))
    torch.testing.assert_close(program.module()(*ARGUMENTS), function(*ARGUMENTS))
    products = [node for node in nodes(program, "mul") if any(map(is_attention, node.args))]
    return [
        int(arg.meta["val"].shape[-1])
        for node in products
        for arg in node.args
        if not is_attention(arg)
    ]


@sampled(2)
@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, c, g: sdpa(q, k, v) * c * g[..., None],
        lambda q, k, v, c, g: g[..., None] * (c.sigmoid() * sdpa(q, k, v)),
        lambda q, k, v, c, g: sdpa(q, k, v) * c[0, 0, 0] * g[..., None],
        lambda q, k, v, c, g: ((q @ k.mT).softmax(-1) @ v) * c * g[..., None],
        lambda q, k, v, c, g: sdpa(q, k, v) * g[..., None] * c,
    ],
)
def test_heads_are_gated_before_channels(function: Function):
    assert partners(function) == [1]


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, c, g: sdpa(q, k, v) * c * c.sin(),
        lambda q, k, v, c, g: ((y := sdpa(q, k, v) * c), y * g[..., None]),
    ],
)
def test_other_products_stay(function: Function):
    assert partners(function) == [3]
