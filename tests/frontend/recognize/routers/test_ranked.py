"""Routers that keep the best heads and weigh them in a way of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Finish, Router
from moh_deploy.frontend.rewrite.router import insert_router
from tests.frontend.traced import Values, plain_trace
from tests.nightly import sampled

HEADS = 6
BIAS = torch.tensor([0.3, -0.2, 0.1, 0.0, -0.4, 0.2])


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, HEADS, bias=False)
        self.register_buffer("bias", BIAS.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.gates(self.project(x))


def mask(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1).indices, 1.0)


class SoftmaxOfChosen(Base):
    """Mixtral's order."""

    def gates(self, logits):
        best, where = logits.topk(2, dim=-1)
        return torch.zeros_like(logits).scatter(-1, where, best.softmax(-1))


class Renormalised(Base):
    """Probabilities in float32 of those that are kept, divided by their sum."""

    def gates(self, logits):
        best, where = F.softmax(logits, dim=-1, dtype=torch.float).topk(2, dim=-1)
        best /= best.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, where, best.to(logits))


class OneMoreThanIsKept(Base):
    """Noisy top-k gating looks one further, for its noise."""

    def gates(self, logits):
        best, where = logits.topk(3, dim=-1)
        return torch.zeros_like(logits).scatter(-1, where[..., :2], best[..., :2].softmax(-1))


class Probabilities(Base):
    """As they are."""

    def gates(self, logits):
        return logits.softmax(-1) * mask(logits, 2)


class Sigmoids(Base):
    def gates(self, logits):
        return logits.sigmoid() * mask(logits.sigmoid(), 3)


class NormalisedSigmoids(Base):
    def gates(self, logits):
        kept = logits.sigmoid() * mask(logits.sigmoid(), 2)
        return kept / (kept.sum(-1, keepdim=True) + 1e-7)


class LargeEpsilon(Base):
    def gates(self, logits):
        kept = logits.softmax(-1) * mask(logits, 2)
        return 2 * kept / (kept.sum(-1, keepdim=True) + 1e-6)


class SelectionBias(Base):
    """A bias that balances takes part in the choice only, for flattened tokens."""

    def forward(self, x):
        scores = self.project(x.reshape(-1, 8)).float().sigmoid()
        where = torch.topk(scores + self.bias, k=3, dim=-1, sorted=False)[1]
        kept = scores.gather(1, where)
        kept = kept / (kept.sum(-1, keepdim=True) + 1e-20) * 2.5
        return torch.zeros_like(scores).scatter(1, where, kept).view(*x.shape[:2], -1)


class ProbabilitiesWithBias(Base):
    def gates(self, logits):
        scores = logits.softmax(-1)
        return scores * mask(scores + self.bias, 2)


class BehindSharedHeads(Base):
    """Two heads always run, at a half."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, HEADS - 2, bias=False)

    def gates(self, logits):
        kept = logits.sigmoid() * mask(logits.sigmoid() + self.bias[2:], 2)
        kept = 2 * kept / kept.sum(-1, keepdim=True)
        return torch.cat([torch.full_like(kept[..., :2], 0.5), kept], dim=-1)


class Groups(Base):
    """Heads are ranked within the best two of three groups."""

    def gates(self, logits):
        scores = logits.sigmoid()
        best = scores.unflatten(-1, (3, 2)).sum(-1)
        open_groups = mask(best, 2).repeat_interleave(2, dim=-1)
        return scores * mask(scores.masked_fill(open_groups == 0, 0.0), 2)


class HeadsFirst(Base):
    def gates(self, logits):
        scores = logits.permute(2, 0, 1).sigmoid()
        chosen = torch.zeros_like(scores).scatter(0, scores.topk(2, dim=0).indices, 1.0)
        return (scores * chosen).permute(1, 2, 0)


EXPECTED = {
    SoftmaxOfChosen: ("top_k", 2, Finish(factor=0.5)),
    Renormalised: ("top_k", 2, Finish(factor=0.5)),
    OneMoreThanIsKept: ("top_k", 2, Finish(factor=0.5)),
    Probabilities: ("ranked", 2, Finish()),
    Sigmoids: ("ranked", 3, Finish()),
    NormalisedSigmoids: ("ranked", 2, Finish(normalized=True, epsilon=1e-7)),
    LargeEpsilon: ("ranked", 2, Finish(normalized=True, factor=2.0, epsilon=1e-6)),
    SelectionBias: ("scored", 3, Finish(normalized=True, factor=2.5)),
    ProbabilitiesWithBias: ("scored", 2, Finish()),
    BehindSharedHeads: ("scored", 2, Finish(normalized=True, factor=2.0, shared_gate=0.5)),
    Groups: ("scored", 2, Finish()),
    HeadsFirst: ("ranked", 2, Finish()),
}


def read(make: type[nn.Module]) -> tuple[Router, Tensor, Tensor]:
    """The router, its own gates, and those of what was inserted for it."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    program = plain_trace(make(), x)
    (gates,) = program.graph.output_node().args[0]
    router = read_router(gates, None, Constants(program))
    if router.reason is not None:
        return router, x, x
    routed = insert_router(GraphBuilder(program.graph, gates.next), router, gates)
    program.graph_module.recompile()
    values = Values(program, x).of
    return router, values[gates], values[routed]


@sampled(4)
@pytest.mark.parametrize("make", EXPECTED)
def test_best_heads_are_ranked_by_a_router_and_weighed_as_before(make: type[nn.Module]):
    router, gates, routed = read(make)
    form, top_k, finish = EXPECTED[make]
    assert (router.form.name, router.top_k) == (form, top_k)
    assert router.num_shared_heads == (2 if make is BehindSharedHeads else 0)
    assert replace(router.finish, weights=None) == finish
    assert (router.finish.weights is None) == (form == "top_k")
    torch.testing.assert_close(routed, gates)


# What is more than a ranking, or weighs in a way that no sum and no factor makes.


class SquareRoots(Base):
    """Divided by the length, not by the sum."""

    def gates(self, logits):
        kept = logits.sigmoid() * mask(logits, 2)
        return kept / kept.norm(dim=-1, keepdim=True)


class ScaledByToken(Base):
    def forward(self, x):
        return super().forward(x) * x.sum(-1, keepdim=True)

    def gates(self, logits):
        return logits.sigmoid() * mask(logits, 2)


class BiasOfTheInput(Base):
    def forward(self, x):
        scores = self.project(x).sigmoid()
        return scores * mask(scores + x[..., :HEADS].cumsum(1), 2)


@pytest.mark.parametrize("make", [SquareRoots, ScaledByToken, BiasOfTheInput])
def test_other_routers_stay_as_they_are(make: type[nn.Module]):
    router, _, _ = read(make)
    assert (router.form.name, router.top_k, router.finish) == ("custom", 2, None)


def test_heads_are_ranked_by_their_logits_where_a_sigmoid_would_make_them_equal():
    router, _, _ = read(NormalisedSigmoids)
    assert op(router.routed_logits.node) == "linear"
    assert op(router.finish.weights.node) == "sigmoid"
    assert router.selection.scores is router.routed_logits.node


def test_heads_with_a_bias_are_ranked_by_the_biased_scores():
    router, _, _ = read(SelectionBias)
    assert op(router.routed_logits.node) == "add"


class SmallBias(Base):
    """Smaller than most differences of logits, and none of the weights."""

    def gates(self, logits):
        return logits.softmax(-1) * mask(logits + self.bias / 400, 2)


class SeldomLeftOut(Base):
    """One of four groups is left out; seldom it has the best head."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8, bias=False)

    def gates(self, logits):
        scores = logits.sigmoid()
        best = scores.unflatten(-1, (4, 2)).sum(-1)
        open_groups = mask(best, 3).repeat_interleave(2, dim=-1)
        return scores * mask(scores.masked_fill(open_groups == 0, 0.0), 1)


@pytest.mark.parametrize(("make", "ranked"), [(SmallBias, "add"), (SeldomLeftOut, "masked_fill")])
def test_what_changes_few_choices_is_seen(make: type[nn.Module], ranked: str):
    router, gates, routed = read(make)
    assert (router.form.name, op(router.routed_logits.node)) == ("scored", ranked)
    torch.testing.assert_close(routed, gates)
