"""Routers whose shared heads are weighed by logits of their own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.frontend.recognize.routers.router import Finish
from tests.frontend.recognize.routers.test_ranked import BIAS, kept_sigmoids, mask, read, share
from tests.nightly import sampled

SHARED, ROUTED = 2, 6


def kept_probabilities(logits: Tensor) -> Tensor:
    return (p := logits.softmax(-1)) * mask(p, 2)


def renormalised(logits: Tensor) -> Tensor:
    return 2 * share(kept_probabilities(logits))


class Base(nn.Module):
    """A sigmoid for two shared heads, and the two best of six others by their probability."""

    def __init__(
        self,
        routed: Callable[[Tensor], Tensor] = kept_probabilities,
        shared: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.to_shared, self.to_routed = nn.Linear(8, SHARED), nn.Linear(8, ROUTED, bias=False)
        self.weights, self.to_stages = nn.Parameter(torch.tensor([0.3, -1.0])), nn.Linear(8, 2)
        self.routed, self.shared = routed, shared

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(self.to_shared(x)), self.routed(self.to_routed(x))], dim=-1)


class OneProjection(Base):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, SHARED + ROUTED)

    def forward(self, x):
        shared, routed = self.project(x).split([SHARED, ROUTED], dim=-1)
        return torch.cat([self.shared(shared), self.routed(routed)], dim=-1)


class HeadsFirst(Base):
    def forward(self, x):
        shared = self.to_shared(x).permute(2, 0, 1).sigmoid()
        p = self.to_routed(x).permute(2, 0, 1).softmax(0)
        routed = p * (p >= p.topk(2, dim=0).values[1])
        return torch.cat([shared, routed]).permute(1, 2, 0)


class WeightsThatAreLearned(Base):
    """Each shared head has a number of its own, which no token changes."""

    def forward(self, x):
        shared = self.weights.sigmoid().expand_as(self.to_shared(x))
        return torch.cat([shared, self.routed(self.to_routed(x))], dim=-1)


class InTwoStages(Base):
    """As published, but for the sigmoid."""

    def forward(self, x):
        stages = self.to_stages(x).softmax(-1) * 2
        shared = self.shared(self.to_shared(x)) * stages[..., :1]
        return torch.cat([shared, self.routed(self.to_routed(x)) * stages[..., 1:]], dim=-1)


class OverTheSumOfAll(Base):
    def forward(self, x):
        return 4 * share(super().forward(x), 1e-3)


AS_THEY_ARE = Finish()
EXPECTED: dict[str, tuple[Callable[[], nn.Module], str, Finish]] = {
    "published": (Base, "mixed", AS_THEY_ARE),
    "one_projection": (OneProjection, "mixed", AS_THEY_ARE),
    # By the MoHRouter, in `weighted` mode.
    "renormalised": (lambda: Base(renormalised), "mixed", AS_THEY_ARE),
    "twice_the_sigmoid": (
        lambda: Base(renormalised, lambda logits: 2 * logits.float().sigmoid()),
        "mixed",
        AS_THEY_ARE,
    ),
    "routed_by_sigmoid": (
        lambda: Base(lambda logits: 2.5 * share(kept_sigmoids(logits), 1e-20)),
        "mixed",
        Finish(normalized=True, factor=2.5),
    ),
    "shared_by_their_share": (
        lambda: Base(shared=lambda logits: share(logits.sigmoid())),
        "mixed",
        AS_THEY_ARE,
    ),
    # Not times their number, as published.
    "shared_by_softmax": (
        lambda: Base(shared=lambda logits: logits.softmax(-1)),
        "mixed",
        AS_THEY_ARE,
    ),
    "ranked_with_bias": (
        lambda: Base(lambda logits: (p := logits.sigmoid()) * mask(p + BIAS, 2)),
        "scored",
        AS_THEY_ARE,
    ),
    "heads_first": (HeadsFirst, "mixed", AS_THEY_ARE),
    "weights_that_are_learned": (WeightsThatAreLearned, "mixed", AS_THEY_ARE),
    "over_the_sum_of_all": (
        OverTheSumOfAll,
        "mixed",
        Finish(joint=Finish(normalized=True, factor=4.0, epsilon=1e-3)),
    ),
    "in_two_stages": (lambda: InTwoStages(renormalised), "mixed", AS_THEY_ARE),
    "stages_of_sigmoids": (
        lambda: InTwoStages(lambda logits: share(kept_sigmoids(logits))),
        "mixed",
        Finish(normalized=True),
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", EXPECTED)
def test_shared_heads_are_weighed_by_themselves_beside_the_best_routed_ones(name: str):
    make, form, finish = EXPECTED[name]
    model = make()
    router, gates, routed = read(model)
    assert (router.form.name, router.num_shared_heads, router.top_k) == (form, SHARED, 2)
    assert replace(router.finish, weights=None, shared=None, scale=None) == finish
    assert (router.finish.scale is not None) == isinstance(model, InTwoStages)
    assert router.finish.shared is not None
    torch.testing.assert_close(routed, gates)


class ByWhatIsChosen(Base):
    """Shared heads have what the routed ones leave."""

    def forward(self, x):
        routed = self.routed(self.to_routed(x))
        return torch.cat([self.to_shared(x).sigmoid() * (1 - routed.sum(-1, True)), routed], -1)


class SharedHeadsLast(Base):
    def forward(self, x):
        return super().forward(x).roll(-SHARED, -1)


class AThirdTensorWeighsBoth(Base):
    def forward(self, x):
        return super().forward(x) * x.mean(-1, keepdim=True)


class PerSequence(Base):
    """A sequence chooses for all of its tokens; shared heads are weighed for each."""

    def forward(self, x):
        routed = self.routed(self.to_routed(x.mean(1)))[:, None].expand(-1, x.shape[1], -1)
        return torch.cat([self.to_shared(x).sigmoid(), routed], -1)


@pytest.mark.parametrize(
    "make", [ByWhatIsChosen, SharedHeadsLast, AThirdTensorWeighsBoth, PerSequence]
)
def test_other_routers_of_two_kinds_are_custom(make: type[nn.Module]):
    router, _, _ = read(make())
    assert router.form.name == "custom"
