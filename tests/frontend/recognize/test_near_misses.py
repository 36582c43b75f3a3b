"""Where attention with gates was lost is told, and nothing else is taken for it."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import Recognized, survey
from moh_deploy.package import NearMiss, OtherGates, OtherRouter
from tests.frontend.traced import traced
from tests.nightly import nightly, sampled
from tests.zoo.model import noise, tokens_in


class Attention(nn.Module):
    """Four heads of eight [B, H, S, D]; other forms have a `forward` of their own, whose lines are
    what is told: of a function that it calls torch keeps no line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return (q @ k.mT).softmax(-1) @ v


class FlippedWeights(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q @ k.mT).softmax(-1)
        return weights.flip(-1) @ v


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


class Gated(nn.Module):
    def __init__(self, attend: nn.Module | None = None) -> None:
        super().__init__()
        self.attend = attend or Attention()
        self.router, self.proj = nn.Linear(32, 4), nn.Linear(32, 32)

    def gates(self, x: Tensor) -> Tensor:
        value, which = self.router(x).softmax(-1).topk(2, -1)
        return torch.zeros(*x.shape[:2], 4).scatter(-1, which, value)  # [B, S, H]

    def forward(self, x: Tensor) -> Tensor:
        gated = self.attend(x).transpose(1, 2) * self.gates(x)[..., None]
        return x + self.proj(gated.flatten(2))


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


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Gated(FlippedWeights()), Gated(FlippedWeights()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def found_in(model: nn.Module, *inputs: ModelInput) -> Recognized:
    return survey(traced(model.eval(), inputs or tokens_in()))


def line_of(model: type[nn.Module], text: str) -> str:
    """The place of a line of a model's `forward`, as it is told."""
    lines, first = inspect.getsourcelines(model.forward)
    offset = next(i for i, line in enumerate(lines) if text in line)
    return f"recognize/test_near_misses.py:{first + offset}"


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
            "gates of heads multiply what gather makes, which is no softmax of scores",
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


class SplitOffChannelGates(Gated):
    """Queries and gates of channels are made by one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        _, gates = self.both(x).unflatten(-1, (4, 16)).tensor_split([8], dim=-1)
        gated = self.attend(x).transpose(1, 2) * torch.sigmoid(gates)
        return x + self.proj(gated.flatten(2))


@nightly
def test_layers_that_are_lost_in_the_same_way_are_told_once():
    found = found_in(Stacked())
    assert [miss.paths for miss in found.near_misses] == [("layers.0", "layers.1")]


class NoGates(Gated):
    def merged(self, x: Tensor) -> Tensor:
        return self.attend(x).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.merged(x))


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


@nightly
def test_a_layer_that_is_recognised_is_no_near_miss():
    found = found_in(Gated())
    assert (len(found.layers), found.near_misses, found.ungated) == (1, (), 0)


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
