"""Gates of what is no attention: heads where tokens are mixed, routers where they are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.recognize import survey
from tests.frontend.traced import traced
from tests.nightly import sampled
from tests.zoo.model import tokens_in


class Mixer(nn.Module):
    """Four heads [B, S, H, D] that are made in another way than by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.proj = nn.Linear(32, 4), nn.Linear(32, 32)
        self.conv, self.three = nn.Conv1d(32, 32, 3, padding=1), nn.Linear(32, 96)

    def gates(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        return p * F.one_hot(p.topk(2, -1).indices, 4).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mixed(x).unflatten(-1, (4, 8))
        return x + self.proj((heads * self.gates(x)[..., None]).flatten(2))

    def mixed(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.mT, 3, 1, 1).mT


class InTheSpectrum(Mixer):
    def mixed(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * 2, n=x.shape[1], dim=1)


class Retention(Mixer):
    def mixed(self, x: Tensor) -> Tensor:
        return self.proj(x).tanh().cumsum(1)


class ByConvolution(Mixer):
    """What a convolution mixes is one of its projections."""

    def mixed(self, x: Tensor) -> Tensor:
        return self.conv(x.mT).mT


class MixedDepths(Mixer):
    """A softmax weighs what three layers made."""

    def forward(self, x: Tensor) -> Tensor:
        weights, first = self.router(x)[..., :3].softmax(-1), self.proj(x)
        second = self.proj(first.relu())
        return weights[..., :1] * first + weights[..., 1:2] * second + weights[..., 2:] * x


class GatedUnit(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        value, gate, _ = self.three(x).chunk(3, -1)
        return value * gate.sigmoid()


class Update(Mixer):
    """One gate for all channels of a token, between old and new."""

    def forward(self, x: Tensor) -> Tensor:
        new = self.router(x)[..., :1].sigmoid()
        return new * self.proj(x) + (1 - new) * x


class Modulated(Mixer):
    """Shift, scale and gate of a whole sequence."""

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.three(F.silu(x.mean(1, keepdim=True))).chunk(3, -1)
        return x + gate * self.proj(x * (1 + scale) + shift)


@sampled(3)
@pytest.mark.parametrize(
    ("model", "maker"),
    [(Mixer, "avg_pool1d"), (InTheSpectrum, "fft_irfft"), (Retention, "cumsum")],
)
def test_heads_of_whatever_mixes_tokens_are_a_near_miss(model: type[nn.Module], maker: str):
    found = survey(traced(model().eval(), tokens_in()))
    (miss,) = found.near_misses
    assert miss.reason == (
        f"gates of heads multiply what {maker} makes, which is no softmax of scores"
    )
    assert found.other_routers == ()


@sampled(2)
@pytest.mark.parametrize(
    ("model", "router", "weighs"),
    [(ByConvolution, "topk of 2 among 4", "conv1d"), (MixedDepths, "softmax of 3", "linear")],
)
def test_what_was_only_projected_is_weighed_by_another_router(
    model: type[nn.Module], router: str, weighs: str
):
    found = survey(traced(model().eval(), tokens_in()))
    (other,) = found.other_routers
    assert (other.router, other.weighs, found.near_misses) == (router, weighs, ())


@sampled(2)
@pytest.mark.parametrize("model", [GatedUnit, Update, Modulated])
def test_gates_that_choose_nothing_are_no_router(model: type[nn.Module]):
    found = survey(traced(model().eval(), tokens_in()))
    assert (found.near_misses, found.other_routers) == ((), ())
