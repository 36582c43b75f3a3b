"""Routers whose shared heads are weighed by logits of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.frontend.recognize.routers.router import Finish
from tests.frontend.recognize.routers.test_ranked import BIAS, mask, read
from tests.nightly import sampled

SHARED, ROUTED = 2, 6


class Base(nn.Module):
    """A sigmoid for two shared heads, and the two best of six others by their probability."""

    def __init__(self) -> None:
        super().__init__()
        self.to_shared, self.to_routed = nn.Linear(8, SHARED), nn.Linear(8, ROUTED, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(self.to_shared(x)), self.routed(self.to_routed(x))], dim=-1)

    def shared(self, logits):
        return logits.sigmoid()

    def routed(self, logits):
        p = logits.softmax(-1)
        return p * mask(p, 2)


class OneProjection(Base):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.project = nn.Linear(8, SHARED + ROUTED)

    def forward(self, x):
        shared, routed = self.project(x).split([SHARED, ROUTED], dim=-1)
        return torch.cat([self.shared(shared), self.routed(routed)], dim=-1)


class Renormalised(Base):
    def routed(self, logits):
        kept = super().routed(logits)
        return 2 * kept / kept.sum(-1, keepdim=True)


class TwiceTheSigmoid(Renormalised):
    def shared(self, logits):
        return 2 * logits.float().sigmoid()


class RoutedBySigmoid(Base):
    def routed(self, logits):
        kept = logits.sigmoid() * mask(logits, 2)
        return 2.5 * kept / (kept.sum(-1, keepdim=True) + 1e-20)


class SharedByTheirShare(Base):
    def shared(self, logits):
        weights = logits.sigmoid()
        return weights / weights.sum(-1, keepdim=True)


class SharedBySoftmax(Base):
    """Not times their number, as published."""

    def shared(self, logits):
        return logits.softmax(-1)


class RankedWithBias(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", BIAS.clone())

    def routed(self, logits):
        scores = logits.sigmoid()
        return scores * mask(scores + self.bias, 2)


class HeadsFirst(Base):
    def forward(self, x):
        shared = self.to_shared(x).permute(2, 0, 1).sigmoid()
        p = self.to_routed(x).permute(2, 0, 1).softmax(0)
        routed = p * (p >= p.topk(2, dim=0).values[1])
        return torch.cat([shared, routed]).permute(1, 2, 0)


class WeightsThatAreLearned(Base):
    """Each shared head has a number of its own, which no token changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, -1.0]))

    def shared(self, logits):
        return self.weights.sigmoid().expand_as(logits)


class InTwoStages(Renormalised):
    """As published, but for the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.to_stages = nn.Linear(8, 2)

    def forward(self, x):
        stages = self.to_stages(x).softmax(-1) * 2
        shared = self.shared(self.to_shared(x)) * stages[..., :1]
        return torch.cat([shared, self.routed(self.to_routed(x)) * stages[..., 1:]], dim=-1)


class OverTheSumOfAll(Base):
    def forward(self, x):
        gates = super().forward(x)
        return 4 * gates / (gates.sum(-1, keepdim=True) + 1e-3)


class StagesOfSigmoids(InTwoStages):
    def routed(self, logits):
        kept = logits.sigmoid() * mask(logits, 2)
        return kept / kept.sum(-1, keepdim=True)


AS_THEY_ARE = Finish()
EXPECTED = {
    Base: ("mixed", AS_THEY_ARE),
    OneProjection: ("mixed", AS_THEY_ARE),
    Renormalised: ("mixed", AS_THEY_ARE),  # by the MoHRouter, in `weighted` mode
    TwiceTheSigmoid: ("mixed", AS_THEY_ARE),
    RoutedBySigmoid: ("mixed", Finish(normalized=True, factor=2.5)),
    SharedByTheirShare: ("mixed", AS_THEY_ARE),
    SharedBySoftmax: ("mixed", AS_THEY_ARE),
    RankedWithBias: ("scored", AS_THEY_ARE),
    HeadsFirst: ("mixed", AS_THEY_ARE),
    WeightsThatAreLearned: ("mixed", AS_THEY_ARE),
    OverTheSumOfAll: ("mixed", Finish(joint=Finish(normalized=True, factor=4.0, epsilon=1e-3))),
    InTwoStages: ("mixed", AS_THEY_ARE),
    StagesOfSigmoids: ("mixed", Finish(normalized=True)),
}


@sampled(3)
@pytest.mark.parametrize("make", EXPECTED)
def test_shared_heads_are_weighed_by_themselves_beside_the_best_routed_ones(
    make: type[nn.Module],
):
    router, gates, routed = read(make)
    form, finish = EXPECTED[make]
    assert (router.form.name, router.num_shared_heads, router.top_k) == (form, SHARED, 2)
    assert replace(router.finish, weights=None, shared=None, scale=None) == finish
    assert (router.finish.scale is not None) == issubclass(make, InTwoStages)
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
    router, _, _ = read(make)
    assert router.form.name == "custom"
