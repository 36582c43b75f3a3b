"""Heads that are projected before their gates: read as gated attention that is projected."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.axes import product
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

B, H, S, D, C = 2, 5, 7, 4, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = random(B, S, H * D)
Q, K = random(H * D, H * D, seed=1), random(H * D, H * D, seed=2)
GATES = random(B, S, H, seed=3).relu()
EACH, ALL = random(H, D, C, seed=4), random(C, D, seed=5)
BIAS, MORE = random(C, seed=6), random(H * C, 7, seed=7)
OF_TOKENS, TOGETHER, AGAIN = random(S, D, C, seed=8), random(H * D, C), random(C, C)

Model = Callable[[Tensor, Tensor], Tensor]


class Projected(nn.Module):
    """The rest of a layer, behind its attention [B, S, H, D]."""

    def __init__(self, rest: Model) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (H, D)).transpose(1, 2) for t in (x @ Q, x @ K, x))
        return self.rest(F.scaled_dot_product_attention(q, k, v).transpose(1, 2), g)


def each(y: Tensor) -> Tensor:
    """[B, S, H, C]: a projection of its own for each head."""
    return torch.einsum("bshd,hdc->bshc", y, EACH)


SUMMED: dict[str, Model] = {
    "product_and_sum": lambda y, g: (each(y) * g[..., None]).sum(2),
    "sum_that_keeps_its_dimension": lambda y, g: (g[..., None] * each(y)).sum(-2, True)[:, :, 0],
    "one_einsum": lambda y, g: torch.einsum("bshc,bsh->bsc", each(y), g),
    "columns_first": lambda y, g: torch.einsum("bshc,bsh->cbs", each(y), g),
    "matmul": lambda y, g: (g[:, :, None] @ each(y)).squeeze(2),
    "heads_first": lambda y, g: ((y.transpose(1, 2) @ EACH) * g.mT[..., None]).sum(1),
}


def inserted(rest: Model) -> tuple[Rewrite, Tensor]:
    """What was inserted, which must agree with the original, and the rewritten model's output."""
    program = plain_trace(Projected(rest), X, GATES)
    (found,) = insert(program, recognize(program))
    (layer,) = record(program, [found], [X, GATES]).layers
    assert layer.disagreement is None
    torch.testing.assert_close(layer.gates, GATES, check_dtype=False)
    done = commit(program, [found])
    assert len(nodes(done, "attention")) == (found.replacement is not None)
    return found, done.module()(X, GATES)[0]


@sampled(3)
@pytest.mark.parametrize("name", SUMMED)
def test_gated_projections_become_a_projection_of_gated_heads(name: str):
    found, output = inserted(SUMMED[name])
    assert found.op == "MoHAttention"
    assert found.head_dim == D
    assert found.output_projection is not None
    assert found.query_projection is not None
    torch.testing.assert_close(output, Projected(SUMMED[name])(X, GATES))


ATTENTION_ALONE: dict[str, Model] = {
    "merged": lambda y, g: (each(y) * g[..., None]).flatten(2) @ MORE,
    "projected_again": lambda y, g: torch.einsum(
        "bshc,hcn->bsn", each(y) * g[..., None], MORE.view(H, C, 7)
    ),
    # One weight for all heads meets their sum: there is nothing to skip.
    "one_weight": lambda y, g: (torch.einsum("bshd,cd->bshc", y, ALL) * g[..., None]).sum(2),
    "linear": lambda y, g: (F.linear(y, ALL) * g[..., None]).sum(2),
}


@sampled(2)
@pytest.mark.parametrize("name", ATTENTION_ALONE)
def test_other_projections_of_heads_stay_behind_the_gated_attention(name: str):
    found, output = inserted(ATTENTION_ALONE[name])
    assert found.op == "MoHAttention"
    assert found.output_projection is None
    torch.testing.assert_close(output, Projected(ATTENTION_ALONE[name])(X, GATES))


def test_original_operators_are_gone():
    program = plain_trace(Projected(SUMMED["product_and_sum"]), X, GATES)
    done = commit(program, insert(program, recognize(program)))
    for replaced in ("scaled_dot_product_attention", "einsum", "mul", "sum"):
        assert nodes(done, replaced) == []


def test_gates_of_another_dtype_are_applied_in_that_of_the_attention():
    def rest(y: Tensor, g: Tensor) -> Tensor:
        return (each(y) * g.double()[..., None]).sum(2)

    found, output = inserted(rest)
    assert found.op == "MoHAttention"
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, Projected(rest)(X, GATES), rtol=1e-5, atol=1e-5)


KEPT: dict[str, tuple[str, Model]] = {
    "a_bias_of_each_head": (
        "a bias is added",
        lambda y, g: (F.linear(y, ALL, BIAS) * g[..., None]).sum(2),
    ),
    "a_weight_for_each_token": (
        "differ between tokens",
        lambda y, g: (torch.einsum("bshd,sdc->bshc", y, OF_TOKENS) * g[..., None]).sum(2),
    ),
    "projection_is_used_elsewhere": (
        "also used by exp",
        lambda y, g: ((wide := each(y)) * g[..., None]).sum(2) + wide.exp().sum(2),
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_layer_that_stays_says_why(name: str):
    reason, rest = KEPT[name]
    found, output = inserted(rest)
    assert reason in found.reason
    torch.testing.assert_close(output, Projected(rest)(X, GATES))


NO_GATES: dict[str, Model] = {
    "a_gate_for_each_column": lambda y, g: (
        each(y) * torch.cat([g, g[..., :1]], -1)[:, :, None]
    ).sum(2),
    "weights_from_the_input": lambda y, g: (
        torch.einsum("bshd,bdc->bshc", y, (g.mT @ g)[:, :D]) * g[..., None]
    ).sum(2),
    "heads_projected_together": lambda y, g: (y.flatten(2) @ TOGETHER) * g[..., :1],
    "head_dimension_in_part": lambda y, g: (
        torch.einsum("bshud,hdc->bshuc", y.unflatten(-1, (2, 2)), EACH[:, :2]) * g[..., None, None]
    ).sum(2),
    "projected_twice": lambda y, g: ((each(y) @ AGAIN) * g[..., None]).sum(2),
}


@sampled(2)
@pytest.mark.parametrize("name", NO_GATES)
def test_what_only_looks_like_it_is_left_alone(name: str):
    assert recognize(plain_trace(Projected(NO_GATES[name]), X, GATES)) == []


def test_heads_are_what_is_summed_up():
    (layer,) = recognize(plain_trace(Projected(SUMMED["one_einsum"]), X, GATES))
    sizes = [product(axes) for axes in (layer.batch, layer.tokens, layer.heads)]
    assert sizes == [B, S, H]
