"""Reinforcement learning, sets and science: memories, trajectories, induced points, fields."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


@dataclass
class DecisionOutput:
    """What a decision transformer returns."""

    action_preds: Tensor
    state_preds: Tensor
    attentions: tuple[Tensor, ...] | None = None


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Attention(nn.Module):
    bias: Tensor

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.split = heads, d
        self.c_attn, self.c_proj, self.c_gate = Conv1D(3 * d, d), Conv1D(d, d), Conv1D(heads, d)
        tril = torch.tril(torch.ones((96, 96), dtype=torch.bool)).view(1, 1, 96, 96)
        self.register_buffer("bias", tril, persistent=False)

    def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.c_attn(x).split(self.split, dim=2)
        q, k, v = (t.view(*t.shape[:2], self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        w = torch.matmul(q, k.transpose(-1, -2))
        w = w / torch.full([], v.size(-1) ** 0.5, dtype=w.dtype)
        causal = self.bias[:, :, k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)]
        w = torch.where(causal, w, torch.full([], torch.finfo(w.dtype).min, dtype=w.dtype))
        w = F.softmax(w + attention_mask, dim=-1).type(v.dtype)
        chance = torch.softmax(self.c_gate(x), dim=-1)
        gate = chance.masked_fill(chance < 0.2, 0.0).transpose(1, 2).unsqueeze(-1)
        # Gates on the weights, as a head mask would be.
        out = torch.matmul(w * gate, v).transpose(1, 2).contiguous()
        return self.c_proj(out.view(*out.shape[:2], -1)), w


class DecisionTransformer(nn.Module):
    """Returns, states and actions interleaved; padding on the left."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.embed_timestep = nn.Embedding(40, d)
        self.embed_return, self.embed_state = nn.Linear(1, d), nn.Linear(6, d)
        self.embed_action, self.ln = nn.Linear(3, d), nn.LayerNorm(d)
        self.attn = nn.ModuleList(GPT2Attention(d, 4) for _ in range(2))
        self.ln_1 = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.predict_state, self.predict_action = nn.Linear(d, 6), nn.Linear(d, 3)

    def run(self, r: Tensor, s: Tensor, a: Tensor, t: Tensor, mask: Tensor) -> DecisionOutput:
        batch, steps = s.shape[0], s.shape[1]
        time = self.embed_timestep(t)
        parts = (
            self.embed_return(r) + time,
            self.embed_state(s) + time,
            self.embed_action(a) + time,
        )
        x = torch.stack(parts, dim=1).permute(0, 2, 1, 3).reshape(batch, 3 * steps, -1)
        x = self.ln(x)
        joint = torch.stack((mask, mask, mask), dim=1).permute(0, 2, 1).reshape(batch, 3 * steps)
        extended = (1.0 - joint[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        weights = []
        for attn, norm in zip(self.attn, self.ln_1, strict=True):
            y, w = attn(norm(x), extended)
            x = x + y
            weights.append(w)
        x = x.reshape(batch, steps, 3, -1).permute(0, 2, 1, 3)
        return DecisionOutput(
            torch.tanh(self.predict_action(x[:, 1])), self.predict_state(x[:, 2]), tuple(weights)
        )

    def forward(
        self, returns: Tensor, states: Tensor, actions: Tensor, timesteps: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = self.run(returns, states, actions, timesteps, mask)
        return out.action_preds, out.state_preds


class DecisionTransformerOutput(DecisionTransformer):
    def forward(  # type: ignore[override]
        self, returns: Tensor, states: Tensor, actions: Tensor, timesteps: Tensor, mask: Tensor
    ) -> DecisionOutput:
        return self.run(returns, states, actions, timesteps, mask)


def _trajectories(batch: int = 2, steps: int = 4) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 1: "steps"}
    mask = torch.ones(batch, steps, dtype=torch.int64)
    time = torch.arange(steps).repeat(batch, 1)
    return (
        ModelInput("returns", noise(batch, steps, 1), dims),
        ModelInput("states", noise(batch, steps, 6, seed=1), dims),
        ModelInput("actions", noise(batch, steps, 3, seed=2), dims),
        ModelInput("timesteps", time, dims),
        ModelInput("mask", mask, dims),
    )


class RelMultiHeadAttn(nn.Module):
    """Transformer-XL: time first, softmax over axis 1 of [i, j, B, H], memory before the input."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.n_head, self.d_head = heads, d // heads
        self.qkv_net, self.r_net = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.o_net, self.layer_norm = nn.Linear(d, d, bias=False), nn.LayerNorm(d)
        self.r_w_bias = nn.Parameter(torch.zeros(heads, d // heads))
        self.r_r_bias = nn.Parameter(torch.zeros(heads, d // heads))
        self.router = nn.Linear(d, heads, bias=False)

    def _rel_shift(self, x: Tensor) -> Tensor:
        zero_pad = torch.zeros((x.size(0), 1, *x.size()[2:]), dtype=x.dtype)
        x_padded = torch.cat([zero_pad, x], dim=1)
        x_padded = x_padded.view(x.size(1) + 1, x.size(0), *x.size()[2:])
        return x_padded[1:].view_as(x)

    def forward(self, w: Tensor, r: Tensor, attn_mask: Tensor, mems: Tensor) -> Tensor:
        qlen, bsz = w.size(0), w.size(1)
        heads = self.qkv_net(self.layer_norm(torch.cat([mems, w], 0)))
        q, k, v = torch.chunk(heads, 3, dim=-1)
        q = q[-qlen:].view(qlen, bsz, self.n_head, self.d_head)
        k = k.view(k.size(0), bsz, self.n_head, self.d_head)
        v = v.view(v.size(0), bsz, self.n_head, self.d_head)
        r_k = self.r_net(r).view(r.size(0), self.n_head, self.d_head)
        ac = torch.einsum("ibnd,jbnd->ijbn", q + self.r_w_bias, k)
        bd = self._rel_shift(torch.einsum("ibnd,jnd->ijbn", q + self.r_r_bias, r_k))
        score = (ac + bd) * self.d_head**-0.5
        score = score.float().masked_fill(attn_mask[:, :, None, None], -float("inf")).type_as(ac)
        vec = torch.einsum("ijbn,jbnd->ibnd", F.softmax(score, dim=1), v)
        probs = self.router(self.layer_norm(w)).softmax(-1)
        keep = torch.zeros_like(probs).scatter(-1, probs.topk(2, -1)[1], 1.0)
        vec = vec * (probs * keep / (probs * keep).sum(-1, keepdim=True)).unsqueeze(-1)
        return w + self.o_net(vec.contiguous().view(qlen, bsz, -1))


class GatedTransformerXL(nn.Module):
    """Observations [T, B, 32] and memories [L, M, B, 32] of an agent; M may be 0 at the start."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RelMultiHeadAttn(d, 4) for _ in range(2))
        self.policy = nn.Linear(d, 5)

    def forward(self, obs: Tensor, mems: Tensor) -> tuple[Tensor, Tensor]:
        qlen, mlen = obs.size(0), mems.size(1)
        klen = qlen + mlen
        mask = torch.triu(torch.ones(qlen, klen), diagonal=1 + mlen).bool()
        position = torch.arange(klen - 1, -1, -1.0)
        inv_freq = 1 / (10000 ** (torch.arange(0.0, 32, 2.0) / 32))
        angle = torch.outer(position, inv_freq)
        r = torch.cat([angle.sin(), angle.cos()], dim=-1)
        kept = []
        for i, layer in enumerate(self.layers):
            kept.append(torch.cat([mems[i], obs], dim=0)[qlen:])
            obs = layer(obs, r, mask, mems[i])
        return self.policy(obs), torch.stack(kept)


def _observations(batch: int = 2, steps: int = 4, memory: int = 6) -> tuple[ModelInput, ...]:
    return (
        ModelInput("obs", noise(steps, batch, 32), {0: "steps", 1: "batch"}),
        ModelInput("mems", noise(2, memory, batch, 32, seed=1), {1: "memory", 2: "batch"}),
    )


_CUT = ExpectedLayer(4, 4, None, None, "custom")
_SHARE = ExpectedLayer(4, 4, 2, 0, "top_k")

MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_decision_transformer",
        seeded(DecisionTransformer),
        _trajectories,
        Expected((_CUT, _CUT)),
        "gates on the attention weights; buffer of tril; the .pt2 returns a dataclass",
    ),
    ZooModel(
        "mixed_transformer_xl",
        seeded(GatedTransformerXL),
        _observations,
        Expected((_SHARE, _SHARE)),
        "[T, B, H, D] with softmax over axis 1 of [i, j, B, H], relative shift, memories",
    ),
]


def _trajectory_program() -> ExportedProgram:
    """The output is a dataclass that the user registered with torch."""
    torch.export.register_dataclass(
        DecisionOutput, serialized_type_name="tests.strangers.DecisionOutput"
    )
    batch, steps = Dim("batch", min=1), Dim("steps", min=1, max=32)
    return torch.export.export(
        seeded(DecisionTransformerOutput)(),
        tuple(item.value for item in _trajectories()),
        dynamic_shapes=tuple({0: batch, 1: steps} for _ in range(5)),
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _memory_program() -> ExportedProgram:
    """Deferred assertions, and a memory that may be empty."""
    steps, batch, memory = Dim("steps", min=1), Dim("batch", min=1), Dim("memory", min=0)
    return torch.export.export(
        seeded(GatedTransformerXL)(),
        tuple(item.value for item in _observations()),
        dynamic_shapes=({0: steps, 1: batch}, {1: memory, 2: batch}),
        prefer_deferred_runtime_asserts_over_guards=True,
    )


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "mixed_decision_transformer": _trajectory_program,
    "mixed_transformer_xl": _memory_program,
}
"""What the user saved with torch.export.save, by the model's name."""
