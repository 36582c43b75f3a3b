"""Routers that keep the best heads and weigh them in a way of their own."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Finish, Logits, Router
from moh_deploy.frontend.recognize.routers.weighing import Weighing
from moh_deploy.frontend.rewrite.router import insert_router
from tests.frontend.traced import Values, plain_trace
from tests.nightly import sampled

HEADS = 6
BIAS = torch.tensor([0.3, -0.2, 0.1, 0.0, -0.4, 0.2])


class Projected(nn.Module):
    """A router that makes gates of the logits of its heads."""

    def __init__(self, gates: Callable[[Tensor], Tensor], heads: int = HEADS) -> None:
        super().__init__()
        self.project, self.gates = nn.Linear(8, heads, bias=False), gates

    def forward(self, x: Tensor) -> Tensor:
        return self.gates(self.project(x))


def mask(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1).indices, 1.0)


def kept_sigmoids(logits: Tensor, k: int = 2) -> Tensor:
    return logits.sigmoid() * mask(logits.sigmoid(), k)


def share(kept: Tensor, epsilon: float = 0.0) -> Tensor:
    return kept / (kept.sum(-1, keepdim=True) + epsilon)


def softmax_of_chosen(logits: Tensor) -> Tensor:
    """Mixtral's order."""
    best, where = logits.topk(2, dim=-1)
    return torch.zeros_like(logits).scatter(-1, where, best.softmax(-1))


def renormalised(logits: Tensor) -> Tensor:
    """Probabilities in float32 of those that are kept, divided by their sum."""
    best, where = F.softmax(logits, dim=-1, dtype=torch.float).topk(2, dim=-1)
    best /= best.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter_(-1, where, best.to(logits))


def one_more_than_is_kept(logits: Tensor) -> Tensor:
    """Noisy top-k gating looks one further, for its noise."""
    best, where = logits.topk(3, dim=-1)
    return torch.zeros_like(logits).scatter(-1, where[..., :2], best[..., :2].softmax(-1))


def normalised_sigmoids(logits: Tensor) -> Tensor:
    return share(kept_sigmoids(logits), 1e-7)


def selection_bias(logits: Tensor) -> Tensor:
    """A bias that balances takes part in the choice only, for flattened tokens."""
    scores = logits.flatten(0, 1).float().sigmoid()
    where = torch.topk(scores + BIAS, k=3, dim=-1, sorted=False)[1]
    kept = share(scores.gather(1, where), 1e-20) * 2.5
    return torch.zeros_like(scores).scatter(1, where, kept).view(logits.shape)


def behind_shared_heads(logits: Tensor) -> Tensor:
    """Two heads always run, at a half."""
    kept = 2 * share(logits.sigmoid() * mask(logits.sigmoid() + BIAS[2:], 2))
    return torch.cat([torch.full_like(kept[..., :2], 0.5), kept], dim=-1)


def of_groups(groups: int, of_groups: int, k: int) -> Callable[[Tensor], Tensor]:
    """Heads are ranked within the best groups of two."""

    def gates(logits: Tensor) -> Tensor:
        scores = logits.sigmoid()
        best = scores.unflatten(-1, (groups, 2)).sum(-1)
        open_groups = mask(best, of_groups).repeat_interleave(2, dim=-1)
        return scores * mask(scores.masked_fill(open_groups == 0, 0.0), k)

    return gates


def heads_first(logits: Tensor) -> Tensor:
    scores = logits.permute(2, 0, 1).sigmoid()
    chosen = torch.zeros_like(scores).scatter(0, scores.topk(2, dim=0).indices, 1.0)
    return (scores * chosen).permute(1, 2, 0)


EXPECTED: dict[str, tuple[Callable[[Tensor], Tensor], str, int, Finish]] = {
    "softmax_of_chosen": (softmax_of_chosen, "top_k", 2, Finish(factor=0.5)),
    "renormalised": (renormalised, "top_k", 2, Finish(factor=0.5)),
    "one_more_than_is_kept": (one_more_than_is_kept, "top_k", 2, Finish(factor=0.5)),
    "probabilities": (lambda logits: logits.softmax(-1) * mask(logits, 2), "ranked", 2, Finish()),
    "sigmoids": (lambda logits: kept_sigmoids(logits, 3), "ranked", 3, Finish()),
    "normalised_sigmoids": (
        normalised_sigmoids,
        "ranked",
        2,
        Finish(normalized=True, epsilon=1e-7),
    ),
    "large_epsilon": (
        lambda logits: 2 * share(logits.softmax(-1) * mask(logits, 2), 1e-6),
        "ranked",
        2,
        Finish(normalized=True, factor=2.0, epsilon=1e-6),
    ),
    "selection_bias": (selection_bias, "scored", 3, Finish(normalized=True, factor=2.5)),
    "probabilities_with_bias": (
        lambda logits: (p := logits.softmax(-1)) * mask(p + BIAS, 2),
        "scored",
        2,
        Finish(),
    ),
    "behind_shared_heads": (
        behind_shared_heads,
        "scored",
        2,
        Finish(normalized=True, factor=2.0, shared_gate=0.5),
    ),
    "groups": (of_groups(3, 2, 2), "scored", 2, Finish()),
    "heads_first": (heads_first, "ranked", 2, Finish()),
}


def read(model: nn.Module) -> tuple[Router, Tensor, Tensor]:
    """The router, its own gates, and those of what was inserted for it."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    program = plain_trace(model, x)
    (gates,) = program.graph.output_node().args[0]
    router = read_router(gates, None, Constants(program))
    if router.reason is not None:
        return router, x, x
    routed = insert_router(GraphBuilder(program.graph, gates.next), router, gates)
    program.graph_module.recompile()
    values = Values(program, x).of
    return router, values[gates], values[routed]


@sampled(4)
@pytest.mark.parametrize("name", EXPECTED)
def test_best_heads_are_ranked_by_a_router_and_weighed_as_before(name: str):
    gates_of, form, top_k, finish = EXPECTED[name]
    num_shared = 2 if gates_of is behind_shared_heads else 0
    router, gates, routed = read(Projected(gates_of, HEADS - num_shared))
    assert (router.form.name, router.top_k) == (form, top_k)
    assert router.num_shared_heads == num_shared
    assert replace(router.finish, weights=None) == finish
    assert (router.finish.weights is None) == (form == "top_k")
    torch.testing.assert_close(routed, gates)


# What is more than a ranking, or weighs in a way that no sum and no factor makes.


class ScaledByToken(Projected):
    def forward(self, x):
        return super().forward(x) * x.sum(-1, keepdim=True)


class BiasOfTheInput(Projected):
    def forward(self, x):
        scores = self.project(x).sigmoid()
        return scores * mask(scores + x[..., :HEADS].cumsum(1), 2)


def by_length(logits: Tensor) -> Tensor:
    """Divided by the length, not by the sum."""
    kept = kept_sigmoids(logits)
    return kept / kept.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    "model",
    [Projected(by_length), ScaledByToken(kept_sigmoids), BiasOfTheInput(kept_sigmoids)],
    ids=["by_length", "scaled_by_token", "bias_of_the_input"],
)
def test_other_routers_stay_as_they_are(model: nn.Module):
    router, _, _ = read(model)
    assert (router.form.name, router.top_k, router.finish) == ("custom", 2, None)


def test_heads_are_ranked_by_their_logits_where_a_sigmoid_would_make_them_equal():
    router, _, _ = read(Projected(normalised_sigmoids))
    assert op(router.routed_logits.node) == "linear"
    assert op(router.finish.weights.node) == "sigmoid"
    assert router.selection.scores is router.routed_logits.node


def test_sigmoids_of_the_chosen_are_ranked():
    """As normalisation puts them: `topk(logits, sorted=False)`, and the sigmoid behind it."""

    def sigmoids_of_chosen(logits: Tensor) -> Tensor:
        best, where = logits.topk(2, dim=-1, sorted=False)
        return torch.zeros_like(logits).scatter(-1, where, share(best.sigmoid(), 1e-9))

    program = normalize(plain_trace(Projected(sigmoids_of_chosen), torch.randn(2, 5, 8)))
    (gates,) = program.graph.output_node().args[0]
    router = read_router(gates, None, Constants(program))
    assert (router.form.name, router.top_k, router.reason) == ("ranked", 2, None)
    assert router.finish.normalized
    assert op(router.finish.weights.node) == "sigmoid"


def test_heads_with_a_bias_are_ranked_by_the_biased_scores():
    router, _, _ = read(Projected(selection_bias))
    assert op(router.routed_logits.node) == "add"


@pytest.mark.parametrize(
    ("gates_of", "heads", "ranked"),
    [
        # Smaller than most differences of logits, and none of the weights.
        (lambda logits: logits.softmax(-1) * mask(logits + BIAS / 400, 2), HEADS, "add"),
        # One of four groups is left out; seldom it has the best head.
        (of_groups(4, 3, 1), 8, "masked_fill"),
    ],
    ids=["small_bias", "seldom_left_out"],
)
def test_what_changes_few_choices_is_seen(gates_of, heads: int, ranked: str):
    router, gates, routed = read(Projected(gates_of, heads))
    assert (router.form.name, op(router.routed_logits.node)) == ("scored", ranked)
    torch.testing.assert_close(routed, gates)


def test_no_epsilon_is_told_from_sums_that_differ_by_their_rounding():
    """The inverses of both sums are the same number."""
    weights = Logits(Graph().placeholder("weights"), 1)
    small = 0.91
    large = math.nextafter(small, 1)
    assert 1 / small == 1 / large
    kept = torch.tensor([[small], [large]], dtype=torch.float64)
    gates = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    weighing = Weighing(SimpleNamespace(tolerance=1e-9), None, [], gates[:, :0], gates)
    assert weighing._finish(weights, kept, gates) is None
