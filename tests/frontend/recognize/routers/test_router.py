from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize.routers.router import find_selection, router_cone
from tests.frontend.traced import plain_trace, traced
from tests.nightly import sampled

HEADS = 5


class Router(nn.Module):
    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.project = nn.Linear(8, HEADS)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.project(x.cumsum(1)))


def cone_of(choose: Callable[[Tensor], Tensor]):
    program = plain_trace(Router(choose), torch.zeros(2, 3, 8))
    (gates,) = program.graph.output_node().args[0]
    return router_cone(gates)


def one_hot(indices: Tensor) -> Tensor:
    return F.one_hot(indices, HEADS).sum(-2).float()


KEEPS_TWO = {
    "topk": lambda s: one_hot(s.topk(2, dim=-1).indices),
    "topk_of_transposed": lambda s: one_hot(s.mT.topk(2, dim=1).indices.mT),
    "sort": lambda s: one_hot(s.sort(dim=-1, descending=True).indices[..., :2]),
    "argsort": lambda s: one_hot(s.argsort(dim=-1, descending=True)[..., :2]),
    "sort_narrow": lambda s: one_hot(s.sort(-1, descending=True)[1].narrow(-1, 0, 2)),
    "kthvalue": lambda s: (s >= s.kthvalue(HEADS - 1, dim=-1, keepdim=True).values).float(),
}


@sampled(3)
@pytest.mark.parametrize("name", KEEPS_TWO)
def test_two_of_five_are_kept(name: str):
    found = find_selection(cone_of(KEEPS_TWO[name]), HEADS)
    assert (found.candidates, found.top_k) == (HEADS, 2)


def test_argmax_keeps_one():
    found = find_selection(cone_of(lambda s: F.one_hot(s.argmax(-1), HEADS).float()), HEADS)
    assert (found.candidates, found.top_k) == (HEADS, 1)


@pytest.mark.parametrize(
    "choose",
    [
        lambda s: s.softmax(-1),
        lambda s: s.sigmoid() * (s > 0),
        lambda s: s.sort(dim=-1).values,
        lambda s: (s == s.amax(-1, True)) * s,
    ],
    ids=["softmax", "threshold", "sort_of_all", "maximum"],
)
def test_nothing_is_selected(choose):
    assert find_selection(cone_of(choose), HEADS) is None


def test_selection_among_more_than_the_heads_is_another_one():
    """A top-k of other things, such as tokens, does not choose heads."""
    cone = cone_of(lambda s: one_hot(s.topk(2, dim=-1).indices))
    assert find_selection(cone, HEADS - 1) is None


class HeadsChooseTokens(nn.Module):
    """Expert choice: each head takes half of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.project(x).softmax(-1).mT
        best, where = scores.topk(x.shape[1] // 2, dim=-1)
        return torch.zeros_like(scores).scatter(-1, where, best).mT


def test_choice_of_tokens_is_no_choice_of_heads():
    inputs = [ModelInput("x", torch.randn(2, HEADS, 8), {1: "seq"})]
    (gates,) = traced(HeadsChooseTokens(), inputs).graph.output_node().args[0]
    assert find_selection(router_cone(gates), HEADS) is None


class AsManyAsTokens(nn.Module):
    """How many heads are chosen depends on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.project(x)
        where = self.best(scores, min(x.shape[1], HEADS))
        return torch.zeros_like(scores).scatter(-1, where, 1.0)

    def best(self, scores: Tensor, number: int) -> Tensor:
        return scores.topk(number, dim=-1).indices


class SortedAsManyAsTokens(AsManyAsTokens):
    def best(self, scores: Tensor, number: int) -> Tensor:
        return scores.argsort(-1, descending=True)[..., :number]


@pytest.mark.parametrize("make", [AsManyAsTokens, SortedAsManyAsTokens])
def test_number_of_heads_that_depends_on_a_size_is_not_known(make: type[nn.Module]):
    inputs = [ModelInput("x", torch.randn(2, 3, 8), {1: "seq"})]
    (gates,) = traced(make(), inputs).graph.output_node().args[0]
    assert find_selection(router_cone(gates), HEADS) is None


def test_of_two_selections_the_one_with_more_candidates_chooses():
    def twice(scores: Tensor) -> Tensor:
        best = one_hot(scores.topk(3, dim=-1).indices)
        return best * F.pad(F.one_hot(scores[..., :3].argmax(-1), 3), (0, 2))

    assert find_selection(cone_of(twice), HEADS).top_k == 3


def test_cone_ends_at_the_projection():
    names = [op(node) for node in cone_of(lambda s: s.softmax(-1))]
    assert "linear" in names
    assert "cumsum" not in names
