"""Which products with attention are gates, and why a layer that has gates is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.fx.axes import product
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import MoHLayer, recognize
from tests.frontend.traced import plain_trace, traced
from tests.nightly import sampled

B, H, S, D = 2, 4, 5, 3
Q, K, V = (
    torch.randn(B, H, S, D, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
)
GATES = torch.rand(B, S, H, generator=torch.Generator().manual_seed(3))
OUT, MIX = torch.ones(H * D, 7), torch.rand(H, H, generator=torch.Generator().manual_seed(4))

sdpa = F.scaled_dot_product_attention
Model = Callable[[Tensor, Tensor, Tensor, Tensor], object]


def layers(model: Model, gates: Tensor = GATES) -> list[MoHLayer]:
    return recognize(plain_trace(model, Q, K, V, gates))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, S, H, D]."""
    return sdpa(q, k, v).transpose(1, 2)


def merge(y: Tensor) -> Tensor:
    return y.flatten(2) @ OUT


def filled_without_nan(p: Tensor, v: Tensor) -> Tensor:
    return torch.where(~p.isnan(), p, 0.0) @ v


def without_nan(p: Tensor) -> Tensor:
    return torch.where(p.isnan(), 0.0, p)


GATED: dict[str, Model] = {
    "per_head": lambda q, k, v, g: merge(attention(q, k, v) * g[..., None]),
    "heads_first": lambda q, k, v, g: merge((sdpa(q, k, v) * g.mT[..., None]).transpose(1, 2)),
    "einsum": lambda q, k, v, g: merge(torch.einsum("bsh,bhsd->bshd", g, sdpa(q, k, v))),
    "merged_first": lambda q, k, v, g: (
        (attention(q, k, v).flatten(2) * g.repeat_interleave(D, -1)) @ OUT
    ),
    "made_in_the_size_of_the_ungated": lambda q, k, v, g: merge(
        (y := attention(q, k, v)) * (torch.zeros_like(y[..., 0]) + g).unsqueeze(-1)
    ),
    "on_weights": lambda q, k, v, g: merge(
        (((q @ k.mT).softmax(-1) * g.mT[..., None]) @ v).transpose(1, 2)
    ),
    "weights_without_nan": lambda q, k, v, g: merge(
        (without_nan((q @ k.mT).softmax(-1)) @ v).transpose(1, 2) * g[..., None]
    ),
    "weights_filled_without_nan": lambda q, k, v, g: merge(
        filled_without_nan((q @ k.mT).softmax(-1), v).transpose(1, 2) * g[..., None]
    ),
    "projected_by_einsum": lambda q, k, v, g: torch.einsum(
        "bshd,hdc->bsc", attention(q, k, v) * g[..., None], OUT.view(H, D, 7)
    ),
    "added": lambda q, k, v, g: (attention(q, k, v) * g[..., None]).sum(2) @ OUT[:D],
    "averaged": lambda q, k, v, g: (sdpa(q, k, v) * g.mT[..., None]).mean(1) @ OUT[:D],
    "channel_major": lambda q, k, v, g: F.linear(
        (sdpa(q, k, v).permute(0, 2, 3, 1) * g[:, :, None]).flatten(2),
        OUT.mT,  # [B, S, D*H]
    ),
    "tokens_innermost": lambda q, k, v, g: (
        OUT.mT @ (sdpa(q, k, v).mT * g.mT[:, :, None]).flatten(1, 2)  # [B, H*D, S]
    ),
    "flattened_with_the_tokens": lambda q, k, v, g: (attention(q, k, v) * g[..., None]).flatten(1),
    "spread_over_channels": lambda q, k, v, g: merge(
        attention(q, k, v) * g[..., None].expand(B, S, H, D)
    ),
    "made_of_spread_parts": lambda q, k, v, g: merge(
        attention(q, k, v) * (g[..., None] * (g[..., None].expand(B, S, H, D) + 1))
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", GATED)
def test_gates_are_recognised_wherever_they_are_applied(name: str):
    (layer,) = layers(GATED[name])
    assert [product(axes) for axes in (layer.batch, layer.heads, layer.tokens)] == [B, H, S]
    assert layer.obstacles == ()


def scale_of_heads(q, k, v, g):
    return merge(attention(q, k, v) * torch.linspace(1, 2, H)[:, None])


NOT_GATED: dict[str, Model] = {
    "ungated": lambda q, k, v, g: merge(attention(q, k, v)),
    "a_constant_for_each_head": scale_of_heads,
    "a_constant_for_each_head_and_position": lambda q, k, v, g: merge(
        attention(q, k, v) * torch.linspace(1, 2, S * H).view(S, H, 1)
    ),
    "a_gate_for_each_channel": lambda q, k, v, g: merge(
        attention(q, k, v) * torch.cat([g] * D, -1).unflatten(-1, (H, D))
    ),
    "a_gate_for_each_token": lambda q, k, v, g: merge(attention(q, k, v) * g[..., :1, None]),
    "after_the_projection": lambda q, k, v, g: merge(attention(q, k, v)) * g[..., :1],
    "queries_gated": lambda q, k, v, g: merge(attention(q * g.mT[..., None], k, v)),
    "values_gated": lambda q, k, v, g: merge(attention(q, k, v * g.mT[..., None])),
    "heads_are_never_merged": lambda q, k, v, g: attention(q, k, v) * g[..., None],
    "channels_are_merged_with_tokens": lambda q, k, v, g: (
        (
            sdpa(q, k, v).mT * g.mT[:, :, None]  # [B, H, D, S]
        ).flatten(2)
    ),
    "times_itself": lambda q, k, v, g: merge(attention(q, k, v) * attention(q, k, v)),
    "after_the_residual": lambda q, k, v, g: merge(
        (attention(q, k, v) + q.transpose(1, 2)) * g[..., None]
    ),
    "normed_by_hand": lambda q, k, v, g: merge(
        (y := attention(q, k, v)) * y.square().mean(-1, keepdim=True).rsqrt()
    ),
    "two_attentions_multiplied": lambda q, k, v, g: merge(attention(q, k, v) * attention(k, q, v)),
}


@sampled(4)
@pytest.mark.parametrize("name", NOT_GATED)
def test_other_products_are_no_gates(name: str):
    assert layers(NOT_GATED[name]) == []


FOR_ALL_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "best": lambda g: F.one_hot(g[:, 0].topk(2).indices, H).sum(-2)[:, None] * g[:, :1],
    "threshold": lambda g: torch.where(g[:, :1] > 0.5, g[:, :1], 0.0),
    "weight": lambda g: g.mean(1, keepdim=True),
    "head_mask": lambda g: g[0, 0],
}


@pytest.mark.parametrize("gates", FOR_ALL_TOKENS.values(), ids=FOR_ALL_TOKENS)
def test_gates_of_all_tokens_of_a_sequence_are_gates(gates: Callable[[Tensor], Tensor]):
    (layer,) = layers(lambda q, k, v, g: merge(attention(q, k, v) * gates(g)[..., None]))
    assert [product(axes) for axes in (layer.batch, layer.heads, layer.tokens)] == [B, H, S]
    assert layer.obstacles == ()


QUERIES = torch.nn.Parameter(torch.rand(H, S, D), requires_grad=False)
LOGITS = torch.nn.Parameter(torch.rand(H, D), requires_grad=False)


def choice(logits: Tensor) -> Tensor:
    return F.one_hot(logits.topk(2).indices, H).sum(-2) * 1.0


LEARNED: dict[str, Model] = {
    "chosen_by_rank": lambda q, k, v, g: merge(
        attention(QUERIES[None], k, v) * choice(QUERIES[0] @ LOGITS.mT)[:, :, None]
    ),
    "weighed": lambda q, k, v, g: merge(
        attention(QUERIES[None], k, v) * (QUERIES[0] @ LOGITS.mT).sigmoid()[..., None]
    ),
    "written_out": lambda q, k, v, g: merge(
        ((QUERIES @ k.mT).softmax(-1) @ v).transpose(1, 2)
        * choice(QUERIES[0] @ LOGITS.mT)[..., None]
    ),
    "on_weights": lambda q, k, v, g: merge(
        ((QUERIES @ k.mT).softmax(-1) * choice(QUERIES[0] @ LOGITS.mT).mT[..., None] @ v).transpose(
            1, 2
        )
    ),
    "one_choice_for_all": lambda q, k, v, g: merge(
        attention(q, k, v) * choice(LOGITS.sum(-1))[:, None]
    ),
}


class Learned(torch.nn.Module):
    """The queries and what chooses heads for them are weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.queries, self.logits = model, QUERIES, LOGITS

    def forward(self, *inputs: Tensor) -> object:
        return self.model(*inputs)


@sampled(2)
@pytest.mark.parametrize("name", LEARNED)
def test_gates_of_learned_queries_need_no_input(name: str):
    (layer,) = recognize(plain_trace(Learned(LEARNED[name]), Q, K, V, GATES))
    assert [product(axes) for axes in (layer.batch, layer.heads, layer.tokens)] == [B, H, S]
    assert layer.obstacles == ()


STORED: dict[str, Model] = {
    "on_heads": lambda q, k, v, g: merge(attention(q, k, v) * g),
    "on_weights": lambda q, k, v, g: merge(
        (((q @ k.mT).softmax(-1) * g[..., None]) @ v).transpose(1, 2)
    ),
    "hard_concrete": lambda q, k, v, g: merge(
        attention(q, k, v) * ((9 * g).sigmoid() * 1.2 - 0.6).clamp(0, 1)
    ),
}


class Stored(torch.nn.Module):
    """The gates of heads [H, 1] are a weight."""

    def __init__(self, model: Model, gates: list[float]) -> None:
        super().__init__()
        self.model, self.gates = model, torch.nn.Parameter(torch.tensor(gates)[:, None])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> object:
        return self.model(q, k, v, self.gates)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(("gates", "layers"), [([0, 1, 0, 0.5], 1), ([2, 1, 3, 0.5], 0)])
def test_stored_gates_are_gates_where_one_of_them_is_0(name: str, gates: list[float], layers: int):
    assert len(recognize(plain_trace(Stored(STORED[name], gates), Q, K, V))) == layers


def test_what_squashes_the_attention_itself_is_a_gate():
    def model(q, k, v, g):
        return merge((y := attention(q, k, v)) * y.mean(-1, keepdim=True).sigmoid())

    (layer,) = layers(model)
    assert product(layer.heads) == H


def test_softmax_behind_a_linear_map_is_no_attention():
    def model(q, k, v, g):
        weights = (q @ OUT[:D]).softmax(-1)  # [B, H, S, 7], such as a choice among 7 experts
        return merge(((weights @ torch.ones(H, 7, D)).transpose(1, 2)) * g[..., None])

    assert layers(model) == []


def test_products_in_a_row_are_one_layer_with_all_their_gates():
    def model(q, k, v, g):
        return merge(attention(q, k, v) * g[..., None] * g.sigmoid()[..., None])

    (layer,) = layers(model)
    assert len(layer.gates) == 2


def test_a_constant_among_the_gates_is_kept():
    def model(q, k, v, g):
        return merge(attention(q, k, v) * g[..., None] * torch.linspace(1, 2, H)[:, None])

    (layer,) = layers(model)
    assert len(layer.gates) == 2


def test_gated_attentions_that_are_added_are_a_layer_each():
    def model(q, k, v, g):
        return merge(attention(q, k, v) * g[..., None] - attention(k, q, v) * g[..., None])

    assert [product(layer.heads) for layer in layers(model)] == [H, H]
    assert [layer.obstacles for layer in layers(model)] == [(), ()]


@pytest.mark.parametrize("other", [attention, lambda q, k, v: q.transpose(1, 2)])
def test_only_the_gated_one_of_two_that_are_added_is_a_layer(other: Callable[..., Tensor]):
    def model(q, k, v, g):
        return merge(other(k, q, v) + attention(q, k, v) * g[..., None])

    (layer,) = layers(model)
    assert product(layer.heads) == H
    assert layer.obstacles == ()


@pytest.mark.parametrize("gates_of", [lambda g: g, lambda g: g.unflatten(-1, (2, 2)).flatten(-2)])
def test_heads_of_one_token_that_share_a_key_are_heads(gates_of: Callable[[Tensor], Tensor]):
    def model(q, k, v, g):
        q, g = q[:, :, :1], gates_of(g)[:, :1]
        y = sdpa(q, k[:, :1].expand(B, H, S, D), v[:, :1].expand(B, H, S, D)).transpose(1, 2)
        return (y * g[..., None]).flatten(1) @ OUT

    (layer,) = layers(model)
    assert product(layer.heads) == H


def test_layers_come_in_the_order_in_which_they_run():
    def model(q, k, v, g):
        first = (attention(q, k, v) * g[..., None]).flatten(2)
        again = sdpa(first.unflatten(-1, (4, D))[:, :, :2].transpose(1, 2), k[:, :2], v[:, :2])
        return (again.transpose(1, 2) * g[..., :2, None]).flatten(2) @ OUT[: 2 * D]

    first, second = layers(model)
    assert [product(layer.heads) for layer in (first, second)] == [4, 2]


OBSTACLES: dict[str, tuple[str, Model]] = {
    "ungated_attention_is_an_output": (
        "also an output of the model",
        lambda q, k, v, g: ((y := attention(q, k, v)), merge(y * g[..., None])),
    ),
    "ungated_attention_is_used": (
        "also used by exp",
        lambda q, k, v, g: merge((y := attention(q, k, v)) * g[..., None]) + merge(y.exp()),
    ),
    "weights_are_an_output": (
        "weights are also an output of the model",
        lambda q, k, v, g: (
            (w := (q @ k.mT).softmax(-1)),
            merge((w @ v).transpose(1, 2) * g[..., None]),
        ),
    ),
    "number_before_the_gates": (
        "with a number before the gates",
        lambda q, k, v, g: merge((attention(q, k, v) / 0.8) * g[..., None]),
    ),
    "two_attentions_added": (
        "with another attention output before the gates",
        lambda q, k, v, g: merge((attention(q, k, v) + attention(k, q, v)) * g[..., None]),
    ),
    "function_before_the_gates": (
        "relu.* stands between the attention and its gates",
        lambda q, k, v, g: merge(attention(q, k, v).relu() * g[..., None]),
    ),
    "weights_without_nan": (
        "nan_to_num.* changes the attention weights",
        lambda q, k, v, g: merge(
            ((q @ k.mT).softmax(-1).nan_to_num() @ v).transpose(1, 2) * g[..., None]
        ),
    ),
    "heads_mixed": (
        "einsum.* mixes the attention weights of several heads",
        lambda q, k, v, g: merge(
            (torch.einsum("bhst,hg->bgst", (q @ k.mT).softmax(-1), MIX) @ v).transpose(1, 2)
            * g[..., None]
        ),
    ),
    "norm_before_the_gates": (
        "stands between the attention and its gates",
        lambda q, k, v, g: merge(F.layer_norm(attention(q, k, v), (D,)) * g[..., None]),
    ),
    "soft_cap": (
        "tanh",
        lambda q, k, v, g: merge(
            ((q @ k.mT).tanh().softmax(-1) @ v).transpose(1, 2) * g[..., None]
        ),
    ),
}


@sampled(4)
@pytest.mark.parametrize("name", OBSTACLES)
def test_layer_that_cannot_be_replaced_says_why(name: str):
    reason, model = OBSTACLES[name]
    (layer,) = layers(model)
    assert re.search(reason, layer.obstacles[0])


def test_path_is_where_attention_and_gates_have_in_common():
    class Core(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.core = Core()

        def forward(self, q, k, v, g):
            return merge(self.core(q, k, v) * g[..., None])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Identity(), Layer()])

        def forward(self, q, k, v, g):
            return self.blocks[1](q, k, v, g)

    (layer,) = recognize(plain_trace(Model(), Q, K, V, GATES))
    assert layer.path == "blocks.1"


class FlattenedTokens(torch.nn.Module):
    """A weight for each of the tokens, which are merged with the channels as heads are."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return (sdpa(x, x, x) * self.weights[: x.shape[1], None]).flatten(1) * 2


def test_as_many_weights_as_tokens_are_no_gates():
    inputs = [ModelInput("x", torch.ones(2, 5, D), {1: "seq"})]
    assert recognize(traced(FlattenedTokens(), inputs)) == []
