"""Heads that are computed one by one become one tensor of all heads."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.normalize import normalize, stack_heads
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

B, S, T, C, H, D = 2, 5, 7, 12, 4, 3

X, Y = (
    torch.randn(B, size, C, generator=torch.Generator().manual_seed(seed))
    for seed, size in enumerate((S, T))
)
G = torch.rand(B, S, H, generator=torch.Generator().manual_seed(2))
Heads = Callable[..., list[Tensor]]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / D**0.5).softmax(-1) @ v


class Model(nn.Module):
    """Projections of all heads, and of each."""

    def __init__(self, forward: Callable[[Model, Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.wholes = nn.ModuleList(nn.Linear(C, H * D) for _ in range(3))
        self.each = nn.ModuleList(nn.Linear(C, 3 * D) for _ in range(H))
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(H))
        self.outs = nn.ModuleList(nn.Linear(D, C) for _ in range(H))
        self.packed = nn.Linear(C, 3 * H * D)
        self.matrices = nn.Parameter(torch.randn(H, C, D))
        self.written = forward
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor, y: Tensor, g: Tensor) -> object:
        return self.written(self, x, y, g)

    def qkv(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, ...]]:
        q, k, v = (whole(item) for whole, item in zip(self.wholes, (x, y, y), strict=True))
        return list(zip(q.split(D, -1), k.chunk(H, -1), v.chunk(H, -1), strict=True))


def slices(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(*qkv) * g[..., h : h + 1] for h, qkv in enumerate(m.qkv(x, y))]
    return torch.cat(heads, -1)


def modules(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(*each(x).chunk(3, -1)) * g[..., h, None] for h, each in enumerate(m.each)]
    return torch.cat(heads, -1)


def matrices(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(x @ w, y @ w, y @ w) for w in m.matrices]
    return torch.stack(heads, 2) * g[..., None]


def fused(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    hidden = torch.ones(S, T, dtype=torch.bool).tril(2)
    heads = [F.scaled_dot_product_attention(*qkv, attn_mask=hidden) for qkv in m.qkv(x, y)]
    return torch.stack(heads, 1) * g.mT[..., None]


def packed(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    qkv = m.packed(x)
    heads = []
    for h in range(H):
        q, k, v = (qkv[..., C * i + D * h : C * i + D * h + D] for i in range(3))
        heads.append(attend(q, k, v) * g[..., h : h + 1])
    return torch.cat(heads, 2)


def grouped(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = m.qkv(x, y)
    made = [attend(heads[h][0], *heads[h // 2][1:]) * g[..., h, None] for h in range(H)]
    return torch.cat(made, -1)


def one_key(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = m.qkv(x, y)
    return torch.cat([attend(q, *heads[0][1:]) * g[..., h, None] for h, (q, _, _) in ids(heads)], 2)


def ids(heads: list[tuple[Tensor, ...]]) -> list[tuple[int, tuple[Tensor, ...]]]:
    return list(enumerate(heads))


def normed(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [
        attend(norm(q), norm(k), v) * g[..., h, None]
        for norm, (h, (q, k, v)) in zip(m.norms, ids(m.qkv(x, y)), strict=True)
    ]
    return torch.cat(heads, -1)


def rotated(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        angle = torch.arange(t.shape[1])[:, None] * 0.1
        return torch.cat((t[..., :1] * angle.cos(), -t[..., 1:] * angle.sin()), -1)

    heads = [attend(turn(q), turn(k), v) for q, k, v in m.qkv(x, y)]
    return torch.cat([y * g[..., h, None] for h, y in enumerate(heads)], -1)


def einsums(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = []
    for h, (q, k, v) in ids(m.qkv(x, y)):
        w = torch.einsum("bsd,btd->bst", q, k).softmax(2)
        heads.append(torch.einsum("bst,btd->bsd", w, v) * g[..., h, None])
    return torch.cat(heads, -1)


def without_a_batch(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(*qkv) * g[0, :, h : h + 1] for h, qkv in ids(m.qkv(x[0], y[0]))]
    return torch.cat(heads, 1)


def projected_and_summed(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [
        out(attend(*qkv) * g[..., h, None])
        for out, (h, qkv) in zip(m.outs, ids(m.qkv(x, y)), strict=True)
    ]
    return x + sum(heads)


def weighed_behind_the_projection(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for out, (h, qkv) in zip(m.outs, ids(m.qkv(x, y)), strict=True):
        total = total + out(attend(*qkv)) * g[..., h, None]
    return total


def summed_behind_a_view(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    total = x.exp().view(-1, C)
    for w, (h, qkv) in zip(m.matrices, ids(m.qkv(x, y)), strict=True):
        total = total + ((attend(*qkv) * g[..., h, None]) @ w.mT).view(-1, C)
    return total.view(B, S, C)


def weights_of_all_are_stacked_too(m: Model, x: Tensor, y: Tensor, g: Tensor) -> object:
    weights = [(q @ k.mT).softmax(-1) for q, k, _ in m.qkv(x, y)]
    values = [v for _, _, v in m.qkv(x, y)]
    heads = [w @ v * g[..., h, None] for h, (w, v) in ids(list(zip(weights, values, strict=True)))]
    return torch.cat(heads, -1), torch.stack(weights, 2)


def scaled_differently(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(q * (h + 1), k, v) * g[..., h, None] for h, (q, k, v) in ids(m.qkv(x, y))]
    return torch.cat(heads, -1)


def chosen_by_number(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    weights, chosen = g.topk(2, -1)
    total = torch.zeros_like(x)
    for out, (h, qkv) in zip(m.outs, ids(m.qkv(x, y)), strict=True):
        weight = (weights * (chosen == h)).sum(-1, keepdim=True)
        total = total + weight * out(attend(*qkv))
    return total


def attentions(written: Callable[..., object]) -> int:
    """How many attentions are left; results must be what they were."""
    torch.manual_seed(0)
    model = Model(written)
    program = normalize(plain_trace(model, X, Y, G))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(X, Y, G), model(X, Y, G))
    return len(nodes(program, "softmax")) + len(nodes(program, "scaled_dot_product_attention"))


@sampled(8)
@pytest.mark.parametrize(
    "written",
    [
        slices,
        modules,
        matrices,
        fused,
        packed,
        grouped,
        one_key,
        normed,
        rotated,
        einsums,
        without_a_batch,
        projected_and_summed,
        weighed_behind_the_projection,
        summed_behind_a_view,
        weights_of_all_are_stacked_too,
        scaled_differently,
        chosen_by_number,
    ],
)
def test_heads_one_by_one_are_one_attention(written: Callable[..., object]):
    assert attentions(written) == 1


def bent_differently(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = [attend(q, k, F.elu(v, 1.0 + h)) for h, (q, k, v) in ids(m.qkv(x, y))]
    return torch.cat(heads, -1) * g.repeat_interleave(D, -1)


def in_another_order(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads = m.qkv(x, y)
    return torch.cat([attend(*heads[h]) * g[..., h, None] for h in (2, 0, 3, 1)], -1)


def one_reads_another(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    heads: list[Tensor] = []
    for h, (q, k, v) in ids(m.qkv(x, y)):
        heads.append(attend(heads[-1] if heads else q, k, v) * g[..., h, None])
    return torch.cat(heads, -1)


def one_is_shown(m: Model, x: Tensor, y: Tensor, g: Tensor) -> object:
    heads = [attend(*qkv) for qkv in m.qkv(x, y)]
    return torch.cat([y * g[..., h, None] for h, y in enumerate(heads)], -1), heads[2]


def streams_of_several_heads(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros(B, S, C)
    for out in m.wholes:
        q = out(x).view(B, S, H, D).transpose(1, 2).reshape(B * H, S, D)
        made = attend(q, q, q).view(B, H, S, D).transpose(1, 2) * g[..., None]
        total = total + made.flatten(2)
    return total


def attentions_of_several_heads(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    q, k, v = (whole(x).view(B, S, H, D).transpose(1, 2) for whole in m.wholes)
    return torch.cat([attend(q, k, v) * g.mT[..., None], attend(k, v, q) * g.mT[..., None]], 1)


def layers_in_a_row(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    for out, each in zip(m.outs, m.each, strict=True):
        x = x + out(attend(*each(x).chunk(3, -1)))
    return x


def layers_of_a_loop(m: Model, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    for _ in range(2):
        x = x + chosen_by_number(m, x, y, g)
    return x


def test_each_layer_of_a_class_is_one_attention(monkeypatch: pytest.MonkeyPatch):
    # A layer has 16 nodes: those of the first leave room for the second.
    module = importlib.import_module(stack_heads.__module__)
    monkeypatch.setattr(module, "_MOST_NODES", 24)
    assert attentions(layers_of_a_loop) == 2


def shown_in_the_second_layer(m: Model, x: Tensor, y: Tensor, g: Tensor) -> object:
    return one_is_shown(m, slices(m, x, y, g), y, g)


@sampled(3)
@pytest.mark.parametrize(
    ("written", "count"),
    [
        (shown_in_the_second_layer, 1 + H),
        (bent_differently, H),
        (in_another_order, H),
        (one_reads_another, H),
        (one_is_shown, H),
        (streams_of_several_heads, 3),
        (attentions_of_several_heads, 2),
        (layers_in_a_row, H),
    ],
)
def test_attentions_of_another_kind_stay(written: Callable[..., object], count: int):
    assert attentions(written) == count
