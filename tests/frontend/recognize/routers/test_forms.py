"""Equal mathematics, however it is written, is the published form; anything else is custom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Router
from tests.frontend.recognize.routers.test_ranked import read as rewritten
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

EPS = torch.finfo(torch.float32).eps


class TwoStage(nn.Module):
    """Two shared heads and the best two of four routed ones, as published; parts may be changed."""

    shared, routed, k = 2, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.to_routed = nn.Linear(8, self.routed, bias=False)
        self.to_shared = nn.Linear(8, self.shared, bias=False)
        self.to_stage = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stage = self.stage_weights(self.to_stage(x))
        shared = self.shared_gates(self.to_shared(x)) * stage[..., :1]
        routed = self.routed_gates(self.to_routed(x)) * stage[..., 1:]
        return self.put_together(shared, routed)

    def stage_weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * 2

    def shared_gates(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * self.shared

    def routed_gates(self, logits: Tensor) -> Tensor:
        scores = logits.softmax(-1)
        return self.renormalised(scores * self.chosen(scores)) * self.k

    def chosen(self, scores: Tensor) -> Tensor:
        best = scores.topk(self.k, dim=-1).indices
        return F.one_hot(best, self.routed).sum(-2)

    def renormalised(self, kept: Tensor) -> Tensor:
        return kept / kept.sum(-1, keepdim=True).clamp(min=EPS)

    def put_together(self, shared: Tensor, routed: Tensor) -> Tensor:
        return torch.cat([shared, routed], dim=-1)


# The same, in other words.


class FlatTokens(TwoStage):
    def forward(self, x):
        return super().forward(x.reshape(-1, 8)).reshape(*x.shape[:2], -1)


class ScatteredMask(TwoStage):
    def chosen(self, scores):
        best = torch.topk(scores, self.k, dim=-1)[1]
        return torch.zeros_like(scores).scatter_(-1, best, 1.0)


class ThresholdMask(TwoStage):
    def chosen(self, scores):
        return (scores >= scores.topk(self.k, dim=-1).values[..., -1:]).to(scores)


class SortedChoice(TwoStage):
    def chosen(self, scores):
        best = scores.sort(dim=-1, descending=True).indices[..., : self.k]
        return F.one_hot(best, self.routed).sum(-2)


class ScatteredValues(TwoStage):
    def routed_gates(self, logits):
        value, best = F.softmax(logits, dim=-1).topk(self.k, dim=-1)
        value = value / value.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, value * self.k)


class FilledWithZeros(TwoStage):
    def routed_gates(self, logits):
        scores = logits.softmax(-1)
        kept = scores.masked_fill(self.chosen(scores) == 0, 0.0)
        return self.k * (kept / kept.sum(-1).unsqueeze(-1))


class SoftmaxAfterChoice(TwoStage):
    """Softmax of the chosen logits is the renormalised softmax of all."""

    def routed_gates(self, logits):
        kept = logits.masked_fill(self.chosen(logits) == 0, float("-inf"))
        return kept.softmax(-1) * self.k


class StageByEinsum(TwoStage):
    def forward(self, x):
        first, second = self.stage_weights(self.to_stage(x)).unbind(-1)
        shared = torch.einsum("bs,bsh->bsh", first, self.shared_gates(self.to_shared(x)))
        routed = torch.einsum("bs,bsh->bsh", second, self.routed_gates(self.to_routed(x)))
        return self.put_together(shared, routed)


class SharedFromAfar(TwoStage):
    """The stage is met before the shared logits, which have the same size."""

    def shared_gates(self, logits):
        return super().shared_gates(logits).mT.contiguous().mT.clone()


class PaddedAndAdded(TwoStage):
    def put_together(self, shared, routed):
        return F.pad(shared, (0, self.routed)) + F.pad(routed, (self.shared, 0))


class WrittenIntoOnes(TwoStage):
    def put_together(self, shared, routed):
        return torch.hstack([shared.flatten(0, 1), routed.flatten(0, 1)]).unflatten(0, (2, 5))


class TinyEpsilon(TwoStage):
    """Added, not clamped, but far below what a float can show."""

    def renormalised(self, kept):
        return kept / (kept.sum(-1, keepdim=True) + 1e-20)


class EpsilonThatFloat32DoesNotShow(TwoStage):
    def renormalised(self, kept):
        return kept / (kept.sum(-1, keepdim=True) + 1e-9)


SAME = (
    TwoStage,
    FlatTokens,
    ScatteredMask,
    ThresholdMask,
    SortedChoice,
    ScatteredValues,
    FilledWithZeros,
    SoftmaxAfterChoice,
    StageByEinsum,
    SharedFromAfar,
    PaddedAndAdded,
    WrittenIntoOnes,
    TinyEpsilon,
    EpsilonThatFloat32DoesNotShow,
)


# One thing is different.


class WithoutTimesK(TwoStage):
    def routed_gates(self, logits):
        scores = logits.softmax(-1)
        return self.renormalised(scores * self.chosen(scores))


class NotRenormalised(TwoStage):
    def renormalised(self, kept):
        return kept


class LargeEpsilon(TwoStage):
    def renormalised(self, kept):
        return kept / (kept.sum(-1, keepdim=True) + 1e-6)


class SoftmaxAfterChoiceWithoutTimesK(TwoStage):
    def routed_gates(self, logits):
        kept = logits.masked_fill(self.chosen(logits) == 0, float("-inf"))
        return kept.softmax(-1)


class SoftmaxOfAllAfterChoice(TwoStage):
    """The choice is taken back: every head is weighed."""

    def routed_gates(self, logits):
        return (logits + self.chosen(logits)).softmax(-1) * self.k


class SoftmaxOfMaskedZeros(TwoStage):
    def routed_gates(self, logits):
        return (logits * self.chosen(logits.softmax(-1))).softmax(-1) * self.k


class Temperature(TwoStage):
    """The choice is made at another temperature than the gates."""

    def routed_gates(self, logits):
        chosen = self.chosen(logits.softmax(-1))
        return self.renormalised((logits / 0.5).softmax(-1) * chosen) * self.k


class SigmoidScores(TwoStage):
    def routed_gates(self, logits):
        scores = logits.sigmoid()
        return self.renormalised(scores * self.chosen(scores)) * self.k


class SmallestHeads(TwoStage):
    def chosen(self, scores):
        best = scores.topk(self.k, dim=-1, largest=False).indices
        return F.one_hot(best, self.routed).sum(-2)


class SharedNotScaled(TwoStage):
    def shared_gates(self, logits):
        return logits.softmax(-1)


class SharedBySigmoid(TwoStage):
    def shared_gates(self, logits):
        return logits.sigmoid() * self.shared


class StageNotScaled(TwoStage):
    def stage_weights(self, logits):
        return logits.softmax(-1)


class StagesSwapped(TwoStage):
    def stage_weights(self, logits):
        return logits.softmax(-1).flip(-1) * 2


class RoutedFirst(TwoStage):
    def put_together(self, shared, routed):
        return torch.cat([routed, shared], dim=-1)


class HeadsReordered(TwoStage):
    def routed_gates(self, logits):
        return super().routed_gates(logits).flip(-1)


class BiasOnGates(TwoStage):
    def put_together(self, shared, routed):
        return super().put_together(shared, routed) + 1e-4


class InputDependentScale(TwoStage):
    """More than the logits decides."""

    def forward(self, x):
        return super().forward(x) * x.sum(-1, keepdim=True).tanh()


class ChosenFromAnother(TwoStage):
    """Heads are ranked by the gates of the token before."""

    def chosen(self, scores):
        return super().chosen(scores.roll(1, dims=1))


class SharedAcrossTokens(TwoStage):
    """A softmax over the tokens, not over the heads."""

    def shared_gates(self, logits):
        return logits.softmax(1) * self.shared


DIFFERENT = (
    WithoutTimesK,
    NotRenormalised,
    LargeEpsilon,
    SoftmaxAfterChoiceWithoutTimesK,
    SoftmaxOfAllAfterChoice,
    SoftmaxOfMaskedZeros,
    Temperature,
    SigmoidScores,
    SmallestHeads,
    SharedNotScaled,
    SharedBySigmoid,
    StageNotScaled,
    StagesSwapped,
    RoutedFirst,
    HeadsReordered,
    BiasOnGates,
    InputDependentScale,
    ChosenFromAnother,
    SharedAcrossTokens,
)


# The other published forms.


class SingleStage(TwoStage):
    shared = 0

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.to_routed = nn.Linear(8, self.routed, bias=False)

    def forward(self, x):
        return self.routed_gates(self.to_routed(x))


class OneSharedHead(TwoStage):
    shared = 1

    def shared_gates(self, logits):
        return torch.ones(*logits.shape[:2], 1)


class OneSharedHeadFromAnotherTensor(OneSharedHead):
    """Only the shape of the other tensor matters."""

    def shared_gates(self, logits):
        return torch.ones_like(logits)


class OneSharedHeadWithItsSoftmax(TwoStage):
    shared = 1


class OneSharedHeadTimesTwo(OneSharedHead):
    def shared_gates(self, logits):
        return torch.full_like(logits, 2.0)


class AllShared(TwoStage):
    def forward(self, x):
        return self.to_routed(x).softmax(-1) * self.routed


class AllSharedBySigmoid(TwoStage):
    def forward(self, x):
        return self.to_routed(x).sigmoid() * self.routed


class Mask(SingleStage):
    def forward(self, x):
        return self.chosen(self.to_routed(x).softmax(-1)).float()


class MaskOfSigmoid(Mask):
    """Another score, but the same heads."""

    def forward(self, x):
        return self.chosen(self.to_routed(x).sigmoid()).float()


class MaskTimesK(Mask):
    def forward(self, x):
        return super().forward(x) * self.k


class QueryNorm(TwoStage):
    """Two heads always run; of four, those with the longest queries, in units of their spread."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.query = nn.Linear(8, 6 * 3)

    def forward(self, x):
        queries = self.query(x).unflatten(-1, (6, 3))
        loud = torch.norm(queries[:, :, 2:], dim=-1)
        chosen = self.chosen((loud / loud.std(-1, keepdim=True)).softmax(-1))
        return torch.cat([torch.ones(*x.shape[:2], 2), chosen], dim=-1)


class QueryNormLast(QueryNorm):
    """The heads that always run are the last ones."""

    def forward(self, x):
        return super().forward(x).flip(-1)


FORMS = {
    SingleStage: ("top_k", 0, 2),
    OneSharedHead: ("two_stage", 1, 2),
    OneSharedHeadFromAnotherTensor: ("two_stage", 1, 2),
    OneSharedHeadWithItsSoftmax: ("two_stage", 1, 2),
    OneSharedHeadTimesTwo: ("mixed", 1, 2),
    AllShared: ("shared", 4, 0),
    AllSharedBySigmoid: ("custom", None, None),
    Mask: ("mask", 0, 2),
    MaskOfSigmoid: ("mask", 0, 2),
    MaskTimesK: ("ranked", 0, 2),
    QueryNorm: ("query_norm", 2, 2),
    QueryNormLast: ("custom", 2, 2),
}


def read(make: type[nn.Module], *, query: bool = False) -> Router:
    """Read a router for two sequences of five tokens; its projection may be that of the query."""
    program = plain_trace(make(), torch.zeros(2, 5, 8))
    (gates,) = program.graph.output_node().args[0]
    projections = nodes(program, "linear")
    return read_router(gates, projections[-1] if query else None, Constants(program))


class LoudestHead(QueryNorm):
    """One head is chosen, so that a sum of the chosen probabilities would divide it by itself."""

    k = 1


class MostLikelyHead(LoudestHead):
    """The same with that sum, which is no number where the probability is none."""

    def chosen(self, scores):
        return self.renormalised(scores * super().chosen(scores))


def test_one_chosen_head_is_a_mask_where_its_gate_is_a_number_for_logits_that_are_none():
    mask, weighted = (read(make, query=True) for make in (LoudestHead, MostLikelyHead))
    assert (mask.form.name, mask.gate_mode) == ("query_norm", "mask")
    assert (weighted.form.name, weighted.gate_mode) == ("top_k", "weighted")


@sampled(3)
@pytest.mark.parametrize("make", SAME)
def test_router_in_other_words_is_the_published_form(make: type[nn.Module]):
    router = read(make)
    assert (router.form.name, router.num_shared_heads, router.top_k) == ("two_stage", 2, 2)
    assert router.reason is None


# A MoHRouter ranks for these, and operators weigh; for the others of DIFFERENT nothing does.
WEIGHED_BY_OPERATORS = {
    WithoutTimesK: "mixed",
    NotRenormalised: "mixed",
    SoftmaxAfterChoiceWithoutTimesK: "mixed",
    Temperature: "mixed",
    SigmoidScores: "mixed",
    SharedNotScaled: "mixed",
    SharedBySigmoid: "mixed",
    StageNotScaled: "mixed",
    StagesSwapped: "mixed",
    ChosenFromAnother: "scored",
    SharedAcrossTokens: "mixed",
}


@sampled(3)
@pytest.mark.parametrize("make", WEIGHED_BY_OPERATORS)
def test_router_that_weighs_in_another_way_is_not_the_published_one(make: type[nn.Module]):
    router, gates, inserted = rewritten(make)
    assert (router.form.name, router.num_shared_heads, router.top_k) == (
        WEIGHED_BY_OPERATORS[make],
        2,
        2,
    )
    torch.testing.assert_close(inserted, gates)


@sampled(3)
@pytest.mark.parametrize("make", [one for one in DIFFERENT if one not in WEIGHED_BY_OPERATORS])
def test_router_that_deviates_is_custom(make: type[nn.Module]):
    router = read(make)
    assert router.form.name == "custom"
    why = "stand behind the routed ones" if make is RoutedFirst else "no published form"
    assert why in router.reason
    assert (router.routed_logits, router.shared_logits, router.stage_logits) == (None, None, None)


@sampled(4)
@pytest.mark.parametrize("make", FORMS)
def test_other_forms(make: type[nn.Module]):
    router = read(make, query=issubclass(make, QueryNorm))
    assert (router.form.name, router.num_shared_heads, router.top_k) == FORMS[make]
    assert (router.reason is None) == (router.form.name != "custom")


def test_logits_are_those_of_each_stage():
    router = read(TwoStage)
    inputs = (router.stage_logits, router.shared_logits, router.routed_logits)
    assert [one.node.name for one in inputs] == ["linear", "linear_1", "linear_2"]
    assert [one.dim for one in inputs] == [2, 2, 2]


def test_mask_of_norms_is_query_norm_only_where_the_query_makes_them():
    assert read(QueryNorm, query=True).form.name == "query_norm"
    assert read(QueryNorm).form.name == "mask"


@sampled(2)
@pytest.mark.parametrize("factor", [1 / 3, 2**0.5, 0.1, 2.5])
def test_scale_of_gates_is_as_exact_as_the_model(factor: float):
    class Scaled(nn.Module):
        """Runs in float32 alone, as zeros of that dtype are written into."""

        def __init__(self) -> None:
            super().__init__()
            self.to_routed = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            value, best = self.to_routed(x).softmax(-1).topk(3, dim=-1)
            value = value / value.sum(-1, keepdim=True) * (3 * factor)
            return torch.zeros(2, 5, 4).scatter(-1, best, value)

    router = read(Scaled)
    assert router.finish is not None
    assert router.finish.factor == pytest.approx(factor, rel=2.0**-21)
