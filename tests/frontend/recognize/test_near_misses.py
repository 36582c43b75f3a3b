"""Where attention with gates was lost is told."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import NearMiss
from tests.frontend.recognize.gated_attention import (
    Attention,
    FlippedWeights,
    Gated,
    Mixer,
    NoGates,
    found_in,
    line_of,
)
from tests.nightly import nightly, sampled
from tests.zoo.model import noise, tokens_in


class WrittenScores(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = (q @ k.mT).roll(1, 2)
        return scores.softmax(-1) @ v


class MixedScores(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = (q @ k.mT).permute(0, 2, 3, 1)
        mixed = F.linear(scores, self.mix)
        return mixed.permute(0, 3, 1, 2).softmax(-1) @ v


class LinearAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        context = F.elu(k).mT @ v
        return F.elu(q) @ context


class Covariance(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q.mT @ k).softmax(-1)
        return (weights @ v.mT).mT


class InterleavedByIndex(Gated):
    def forward(self, x: Tensor) -> Tensor:
        attention, gates = self.attend(x), self.gates(x)
        merged = torch.zeros_like(x)
        for head in range(4):
            channels = torch.arange(head, 32, 4)
            one = attention[:, head]
            merged = merged.index_add(-1, channels, one * gates[..., head : head + 1])
        return x + self.proj(merged)


class ChosenHeads(Gated):
    def forward(self, x: Tensor) -> Tensor:
        which = self.router(x).topk(2, -1).indices[..., None].expand(-1, -1, -1, 8)
        chosen = self.attend(x).transpose(1, 2).gather(2, which)
        return x + self.proj(chosen.repeat(1, 1, 2, 1).flatten(2))


@sampled(5)
@pytest.mark.parametrize(
    ("attend", "reason", "line"),
    [
        (FlippedWeights, "softmax was followed; lost at flip", "flip"),
        (WrittenScores, "the scores of softmax were lost at roll", "roll"),
        (MixedScores, "the scores of softmax were lost at linear", "F.linear"),
        (
            LinearAttention,
            "matmul multiplies computed tensors as attention does, but is no softmax of scores",
            "context =",
        ),
        (
            Covariance,
            "softmax weighs channels, not tokens, and the gates are those of tokens",
            "softmax",
        ),
    ],
)
def test_gated_attention_that_is_no_layer_is_told_with_where_it_was_lost(
    attend: type[nn.Module], reason: str, line: str
):
    place, gates = line_of(attend, line), line_of(Gated, "self.gates(x)")
    found = found_in(Gated(attend()))
    assert found.near_misses == (NearMiss(("model",), reason, place, gates),)
    assert (found.layers, found.ungated) == ((), 0)


@sampled(2)
@pytest.mark.parametrize(
    ("model", "reason", "lost", "applied"),
    [
        (InterleavedByIndex, "softmax was followed; lost at select", "one =", "one *"),
        (ChosenHeads, "softmax was followed; lost at gather", "gather", "gather"),
    ],
)
def test_gates_that_make_no_layer_are_told_with_where_they_are_applied(
    model: type[nn.Module], reason: str, lost: str, applied: str
):
    found = found_in(model())
    miss = NearMiss(("model",), reason, line_of(model, lost), line_of(model, applied))
    assert (found.layers, found.near_misses, found.ungated) == ((), (miss,), 0)


class VmappedHeads(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.randn(4, 8, 32))

    def forward(self, x: Tensor) -> Tensor:
        def head(attention: Tensor, gate: Tensor, out: Tensor) -> Tensor:
            return (attention * gate[..., None]) @ out

        heads = torch.vmap(head, (1, -1, 0))
        return x + heads(self.attend(x), self.gates(x), self.out).sum(0)


@nightly
def test_heads_of_a_vmap_are_a_layer_and_no_near_miss():
    found = found_in(VmappedHeads())
    assert (len(found.layers), found.near_misses) == (1, ())


class GatedValues(Gated):
    """The gate of a head is that of the token that is attended to."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attend.split(x)
        gated = v * self.gates(x).transpose(1, 2)[..., None]
        return x + self.proj(((q @ k.mT).softmax(-1) @ gated).transpose(1, 2).flatten(2))


def test_gates_in_front_of_the_attention_are_told():
    reason = "what looks like gates is multiplied with what softmax reads, not with its heads"
    place = line_of(GatedValues, "gated =")
    found = found_in(GatedValues())
    assert found.near_misses == (NearMiss(("model",), reason, place, place),)
    assert (found.layers, found.ungated) == ((), 0)


class GatedElsewhere(Gated):
    """Gates of heads [tokens, H, D] that have another attention than one over keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).unbind(-3)
        return q, k, v


class EdgeAttention(GatedElsewhere):
    """A softmax over the edges of a graph: one sum over an index for its denominators, and one for
    its values."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        weights = (q[edges[1]] * k[edges[0]]).sum(-1).exp()
        total = weights.new_zeros(x.shape[0], 4).index_add(0, edges[1], weights)
        weights = weights / total[edges[1]]
        merged = torch.zeros_like(v).index_add(0, edges[1], weights[..., None] * v[edges[0]])
        gate = self.router(x).sigmoid()
        gate = torch.where(gate > 0.5, gate, 0.0)
        return x + self.proj((merged * gate[..., None]).flatten(1))


class EdgeAttentionByHeads(GatedElsewhere):
    """One head after the other, summed by scatter_add, and put side by side."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        gate, heads = self.router(x).softmax(-1), []
        for h in range(4):
            weights = (q[edges[1], h] * k[edges[0], h]).sum(-1, keepdim=True).exp()
            where = edges[1][:, None].expand(-1, 8)
            one = torch.zeros_like(v[:, h]).scatter_add(0, where, weights * v[edges[0], h])
            heads.append(one * gate[:, h : h + 1])
        return x + self.proj(torch.cat(heads, -1))


class DelayedAttention(GatedElsewhere):
    """The few delays of the largest correlation, of heads and channels together, one by one."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        back = (torch.arange(12)[:, None] - torch.arange(12)) % 12
        correlation = torch.einsum("bthd,bsthd->bs", q, k[:, back])
        weights, delays = correlation.topk(3, -1)
        weights = weights.softmax(-1)
        merged = torch.zeros_like(v)
        for i in range(3):
            moved = (torch.arange(12) + delays[:, i : i + 1]) % 12
            rolled = v.gather(1, moved[..., None, None].expand_as(v))
            merged = merged + rolled * weights[:, i, None, None, None]
        gate = self.router(x).softmax(-1)
        gate = gate.masked_fill(gate < gate.topk(2).values[..., -1:], 0.0)
        return x + self.proj((merged * gate[..., None]).flatten(2))


EDGES = (
    ModelInput("x", noise(6, 32), {0: "nodes"}),
    ModelInput("edges", torch.arange(20).view(2, 10) % 6, {1: "edges"}),
)


@sampled(3)
@pytest.mark.parametrize(
    ("model", "inputs", "reason", "lost", "applied"),
    [
        (
            EdgeAttention,
            EDGES,
            "index_add sums over an index, as attention over edges does, not over all keys",
            "zeros_like(v)",
            "merged * gate",
        ),
        (
            EdgeAttentionByHeads,
            EDGES,
            "scatter_add sums over an index, as attention over edges does, not over all keys",
            "zeros_like(v",
            "one * gate",
        ),
        (
            DelayedAttention,
            (ModelInput("x", noise(2, 12, 32), {0: "batch"}),),
            "gates of heads multiply the output of gather, which is no softmax of scores",
            "v.gather",
            "merged * gate",
        ),
    ],
)
def test_gated_heads_of_what_is_no_softmax_over_keys_are_told(
    model: type[nn.Module], inputs: tuple[ModelInput, ...], reason: str, lost: str, applied: str
):
    miss = NearMiss(("model",), reason, line_of(model, lost), line_of(model, applied))
    found = found_in(model(), *inputs)
    assert (found.layers, found.near_misses, found.other_routers) == ((), (miss,), ())


@nightly
def test_layers_that_are_lost_in_the_same_way_are_told_once():
    found = found_in(nn.Sequential(Gated(FlippedWeights()), Gated(FlippedWeights())))
    assert [miss.paths for miss in found.near_misses] == [("0", "1")]


class MaskedHeads(NoGates):
    """`head_mask` of transformers: 1 for heads that stay."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gated = self.attend(x) * mask[:, None, None]
        return x + self.proj(gated.transpose(1, 2).flatten(2))


class MaskedWeights(MaskedHeads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.attend.split(x)
        weights = (q @ k.mT).softmax(-1) * mask[None, :, None, None]
        return x + self.proj((weights @ v).transpose(1, 2).flatten(2))


class MaskedHeadsOfALoop(MaskedHeads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.attend.split(x)
        weights = [(q[:, h] @ k[:, h].mT).softmax(-1) for h in range(4)]
        heads = [weights[h] @ v[:, h] * mask[h] for h in range(4)]
        return x + self.proj(torch.cat(heads, -1))


class SqueezedHeads(NoGates):
    def forward(self, x: Tensor) -> Tensor:
        gated = self.attend(x) * self.router(x.mean(1))[:, :, None, None]
        return x + self.proj(gated.transpose(1, 2).flatten(2))


HEADS = ModelInput("mask", torch.tensor([1.0, 0, 1, 1]))


@sampled(2)
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (MaskedHeads, (*tokens_in(), HEADS)),
        (MaskedWeights, (*tokens_in(), HEADS)),
        (MaskedHeadsOfALoop, (*tokens_in(), HEADS)),
        (SqueezedHeads, tokens_in()),
    ],
)
def test_gates_of_whole_sequences_make_layers(
    model: type[nn.Module], inputs: tuple[ModelInput, ...]
):
    found = found_in(model(), *inputs)
    assert (len(found.layers), found.near_misses, found.ungated) == (1, (), 0)


class Tanh(Gated):
    """Gates that nothing ranks or squashes."""

    def gates(self, x: Tensor) -> Tensor:
        return self.router(x).tanh()


class ClosedHeads(Gated):
    """Gates that no input changes, some of them 0."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__(attend)
        self.register_buffer("stored", torch.tensor([1.0, 0.0, 0.5, 0.0]))

    def gates(self, x: Tensor) -> Tensor:
        return self.stored


@sampled(2)
@pytest.mark.parametrize("gated", [Tanh, ClosedHeads])
def test_attention_that_was_lost_is_told_whatever_its_gates_are(gated: type[Gated]):
    found = found_in(gated(FlippedWeights()))
    place, gates = line_of(FlippedWeights, "flip"), line_of(Gated, "self.gates(x)")
    assert found.near_misses == (
        NearMiss(("model",), "softmax was followed; lost at flip", place, gates),
    )


class UnlikeHeadsOfALoop(Gated):
    """Heads that are no attention of all at once; what chose them is compared with each number."""

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        total = torch.zeros_like(x)
        for h in range(4):
            gate = (weight * (chosen == h)).sum(-1, keepdim=True)
            total = total + gate * F.linear(self.head(x, h), self.proj.weight[:, h::4])
        return x + total

    def head(self, x: Tensor, h: int) -> Tensor:
        q, k, v = (part[:, h] for part in self.attend.split(x))
        return F.elu((q @ k.mT).softmax(-1) @ v, 1.0 + h)


class UnlikeMaskedHeadsOfALoop(UnlikeHeadsOfALoop):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = [self.head(x, h) * mask[h] for h in range(4)]
        return x + self.proj(torch.cat(heads, -1))


@pytest.mark.parametrize(
    ("model", "inputs", "line"),
    [
        (UnlikeHeadsOfALoop, tokens_in(), "gate *"),
        (UnlikeMaskedHeadsOfALoop, (*tokens_in(), HEADS), "mask[h]"),
    ],
)
def test_heads_of_a_loop_that_differ_are_told(
    model: type[nn.Module], inputs: tuple[ModelInput, ...], line: str
):
    found = found_in(model(), *inputs)
    assert (found.layers, found.ungated) == ((), 0)
    assert {miss.gates for miss in found.near_misses} == {line_of(model, line)}


@nightly
def test_a_layer_that_is_recognised_is_no_near_miss():
    found = found_in(Gated())
    assert (len(found.layers), found.near_misses, found.ungated) == (1, (), 0)


class InTheSpectrum(Mixer):
    def mixed(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * 2, n=x.shape[1], dim=1)


class Retention(Mixer):
    def mixed(self, x: Tensor) -> Tensor:
        return self.proj(x).tanh().cumsum(1)


@sampled(3)
@pytest.mark.parametrize(
    ("model", "maker"),
    [(Mixer, "avg_pool1d"), (InTheSpectrum, "fft_irfft"), (Retention, "cumsum")],
)
def test_heads_of_whatever_mixes_tokens_are_a_near_miss(model: type[nn.Module], maker: str):
    found = found_in(model())
    (miss,) = found.near_misses
    assert miss.reason == (
        f"gates of heads multiply the output of {maker}, which is no softmax of scores"
    )
    assert found.other_routers == ()
