"""Routers and gates of other things than heads: they are no near misses, and are counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import OtherGates, OtherRouter
from tests.frontend.recognize.gated_attention import (
    FlippedWeights,
    Gated,
    Mixer,
    NoGates,
    found_in,
    line_of,
)
from tests.nightly import nightly, sampled
from tests.zoo.model import noise, tokens_in


class SplitOffChannelGates(Gated):
    """Queries and gates of channels are made by one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        _, gates = self.both(x).unflatten(-1, (4, 16)).tensor_split([8], dim=-1)
        gated = self.attend(x).transpose(1, 2) * torch.sigmoid(gates)
        return x + self.proj(gated.flatten(2))


class ChannelGates(NoGates):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.merged(x).roll(1, -1) * torch.sigmoid(self.proj(x)))


class SqueezedGates(NoGates):
    """A gate for each channel, the same for all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.proj(x.mean(1, keepdim=True)))
        return x + self.proj(self.merged(x) * gates)


class TokenMask(NoGates):
    """Padded tokens are set to 0 behind their attention."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.proj(self.merged(x).roll(1, 1) * mask[..., None])


class Experts(NoGates):
    """A mixture of two experts behind an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(32, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 32)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        value, which = self.route(x).softmax(-1).topk(1, -1)
        gates = torch.zeros(*x.shape[:2], 2).scatter(-1, which, value)
        return x + sum(gates[..., i : i + 1] * each(x) for i, each in enumerate(self.experts))


class ExpertsBehindTheSum(Experts):
    """Experts of one projection read the sum of attention and what it read."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.merged(x)
        value, which = self.route(x).softmax(-1).topk(1, -1)
        gates = torch.zeros(*x.shape[:2], 2).scatter(-1, which, value)
        return gates[..., :1] * self.proj(x) + gates[..., 1:] * self.proj(x.flip(-1))


class GroupedExperts(Experts):
    """The better of two groups of experts is chosen first, and its better expert then."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).unflatten(-1, (2, 2))
        best = logits.amax(-1).topk(1, -1).indices
        group = torch.zeros(*x.shape[:2], 2).scatter(-1, best, 1.0)
        scores = (logits.sigmoid() * group[..., None]).flatten(2)
        value, which = scores.topk(1, -1)
        gates = torch.zeros_like(scores).scatter(-1, which, value)
        each = torch.stack([expert(x) for expert in (*self.experts, *self.experts)], -1)
        return self.merged(x) + (each * gates[..., None, :]).sum(-1)


class SwitchedExperts(NoGates):
    """The weights of the best expert are looked up, and its result is multiplied with one score."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(32, 2), nn.Parameter(torch.randn(2, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        value, which = self.route(x).softmax(-1).max(-1)
        each = torch.einsum("bsd,bsde->bse", x, self.experts[which])
        return x + each * value[..., None]


class StackedExperts(NoGates):
    """Experts that are computed as one, and weighed without a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(32, 2)
        self.up, self.down = (
            nn.Parameter(torch.randn(2, 32, 16)),
            nn.Parameter(torch.randn(2, 16, 32)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        hidden = torch.einsum("bsd,edf->bsef", x, self.up).relu()
        each = torch.einsum("bsef,efd->bsed", hidden, self.down)
        return x + torch.einsum("bse,bsed->bsd", self.route(x).softmax(-1), each)


class GatedProjection(NoGates):
    """Gates of heads that attend to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        heads = self.proj(x).unflatten(-1, (4, 8)).relu()
        return x + (heads * self.gates(x)[..., None]).flatten(2)


class PooledTokens(NoGates):
    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.merged(x))
        return (x * self.router(x)[..., :1].softmax(1)).sum(1)


MASK = ModelInput("mask", (noise(2, 7) > 0).float(), {0: "batch", 1: "seq"})


class ModulatedBlock(NoGates):
    """What stands behind the output projection is a gate of the block, as in a DiT."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.proj(x.mean(1)).repeat(1, 2).chunk(2, 1)
        return x * second[:, None] + first[:, None] * self.proj(self.merged(x))


class ScaledSamples(NoGates):
    """A factor for each sample of a batch of fixed size, and one for each of as many tokens."""

    def forward(self, x: Tensor, samples: Tensor, tokens: Tensor) -> Tensor:
        y = self.attend(x) * samples[:, None, None, None] * tokens[:, None, :, None]
        return x + self.proj(y.transpose(1, 2).flatten(2))


class NormedHeads(NoGates):
    """A norm of each head, written by hand: it is computed from the attention alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(x).transpose(1, 2)
        y = y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return x + self.proj(y.flatten(2))


class DividedLinearAttention(NoGates):
    """No softmax: what divides by the sum of the weights has a number for each head."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.elu(part) + 1 for part in self.attend.split(x))
        total = 1 / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        return x + self.proj(((q @ (k.mT @ v)) * total).transpose(1, 2).flatten(2))


class GroupsBehindTheProjection(NoGates):
    """As many groups of channels as heads, behind weights that have mixed the heads."""

    def forward(self, x: Tensor) -> Tensor:
        groups = self.proj(self.merged(x)).unflatten(-1, (4, 8))
        return x + (groups * self.router(x).tanh()[..., None]).flatten(2)


class WeighedProducts(NoGates):
    """Products that are no attention, times entries of an input."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        q, k, v = (part.flatten(1, 2) for part in self.attend.split(x))
        return q @ (k.mT @ v) * weights[0] + k @ (q.mT @ v) * weights[1]


FIXED = (
    ModelInput("x", noise(4, 7, 32)),
    ModelInput("samples", noise(4)),
    ModelInput("tokens", noise(4, 7)),
)


@sampled(4)
@pytest.mark.parametrize(
    ("model", "inputs", "ungated"),
    [
        (NoGates, tokens_in(), 1),
        (TokenMask, (*tokens_in(), MASK), 1),
        (Experts, tokens_in(), 1),
        (ExpertsBehindTheSum, tokens_in(), 1),
        (PooledTokens, tokens_in(), 1),
        (ModulatedBlock, tokens_in(), 1),
        (ScaledSamples, FIXED, 1),
        (NormedHeads, tokens_in(), 1),
        (GroupsBehindTheProjection, tokens_in(), 1),
        (DividedLinearAttention, tokens_in(), 0),
        (WeighedProducts, (*tokens_in(), ModelInput("weights", noise(2))), 0),
    ],
)
def test_what_gates_no_heads_is_no_near_miss(
    model: type[nn.Module], inputs: tuple[ModelInput, ...], ungated: int
):
    found = found_in(model(), *inputs)
    assert (found.layers, found.near_misses) == ((), ())
    assert (found.ungated, found.other_gates) == (ungated, {})


class FlippedChannelGates(SplitOffChannelGates):
    """Attention that was lost, with gates of channels: no attention is counted there."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = FlippedWeights()


class ScaledHeads(NoGates):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(x) * self.scale[:, None, None]
        return x + self.proj(y.transpose(1, 2).flatten(2))


@sampled(2)
@pytest.mark.parametrize(
    ("model", "other_gates"),
    [
        (ChannelGates, {"channels": 1}),
        (SplitOffChannelGates, {"channels": 1}),
        (SqueezedGates, {"channels": 1}),
        (FlippedChannelGates, {}),
        (ScaledHeads, {"heads": 1}),
    ],
)
def test_gates_that_close_no_head_are_counted_by_what_they_multiply(
    model: type[nn.Module], other_gates: dict[OtherGates, int]
):
    found = found_in(model())
    assert (found.layers, found.near_misses) == ((), ())
    assert (found.ungated, found.other_gates) == (0, other_gates)


@sampled(5)
@pytest.mark.parametrize(
    ("model", "router", "place", "weighs", "gates"),
    [
        (Experts, "topk of 1 among 2", "topk", "linear", "gates[..., i"),
        (ExpertsBehindTheSum, "topk of 1 among 2", "topk", "linear", "gates[..., :1]"),
        (GroupedExperts, "topk of 1 among 4", "scores.topk", "linear", "each * gates"),
        (SwitchedExperts, "max of 2", ".max(-1)", "einsum", "each * value"),
        (StackedExperts, "softmax of 2", "softmax", "einsum", "softmax"),
    ],
)
def test_a_router_that_weighs_no_attention_is_told_with_what_it_multiplies(
    model: type[nn.Module], router: str, place: str, weighs: str, gates: str
):
    other = OtherRouter(("model",), router, line_of(model, place), weighs, line_of(model, gates))
    assert found_in(model()).other_routers == (other,)


@nightly
def test_gates_of_heads_that_were_only_projected_are_no_near_miss():
    found = found_in(GatedProjection())
    (other,) = found.other_routers
    assert (other.router, other.weighs, found.near_misses) == ("topk of 2 among 4", "linear", ())


class Squeezed(nn.Module):
    """Squeeze and excitation: channels of an image by their means. No router."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(image), 2)
        return (x * self.squeeze(x.mean((2, 3))).sigmoid()[..., None, None]).flatten(1)


def test_a_gate_of_channels_is_no_router():
    found = found_in(Squeezed(), ModelInput("image", noise(2, 3, 10, 10), {0: "batch"}))
    assert (found.near_misses, found.other_routers) == ((), ())


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


@sampled(2)
@pytest.mark.parametrize(
    ("model", "router", "weighs"),
    [(ByConvolution, "topk of 2 among 4", "conv1d"), (MixedDepths, "softmax of 3", "linear")],
)
def test_what_was_only_projected_is_weighed_by_another_router(
    model: type[nn.Module], router: str, weighs: str
):
    found = found_in(model())
    (other,) = found.other_routers
    assert (other.router, other.weighs, found.near_misses) == (router, weighs, ())


@sampled(2)
@pytest.mark.parametrize("model", [GatedUnit, Update, Modulated])
def test_gates_that_choose_nothing_are_no_router(model: type[nn.Module]):
    found = found_in(model())
    assert (found.near_misses, found.other_routers) == ((), ())
