"""Speech: a streaming encoder with a cache and an encoder-decoder with cross-attention."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class StreamingAttention(nn.Module):
    """One cache tensor holds keys and values; fully masked rows give zeros, not NaN."""

    def __init__(self, d: int, heads: int, shared: int, keep: int) -> None:
        super().__init__()
        self.h, self.d_k, self.shared, self.keep = heads, d // heads, shared, keep
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(d, d) for _ in range(3))
        self.linear_out = nn.Linear(d, d)
        self.shared_router = nn.Linear(d, shared, bias=False)
        self.routed_router = nn.Linear(d, heads - shared, bias=False)
        self.mix = nn.Linear(d, 2, bias=False)

    def gates(self, x: Tensor) -> Tensor:
        balance = self.mix(x).softmax(-1)
        shared = self.shared_router(x).softmax(-1) * self.shared * balance[..., :1]
        routed = self.routed_router(x).softmax(-1)
        index = routed.topk(self.keep, -1).indices
        chosen = F.one_hot(index, routed.size(-1)).sum(-2)
        routed = routed * chosen
        routed = routed / routed.sum(-1, keepdim=True) * self.keep * balance[..., 1:]
        return torch.cat([shared, routed], -1)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Tensor) -> tuple[Tensor, Tensor]:
        b = x.size(0)
        q, k, v = (
            linear(x).view(b, -1, self.h, self.d_k).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        key_cache, value_cache = torch.split(cache, cache.size(-1) // 2, dim=-1)
        k = torch.cat([key_cache, k], dim=2)
        v = torch.cat([value_cache, v], dim=2)
        new_cache = torch.cat((k, v), dim=-1)
        scores = torch.matmul(q, k.transpose(-2, -1)) / self.d_k**0.5
        if mask is not None:
            blocked = mask.unsqueeze(1).eq(0)[:, :, :, : scores.size(-1)]
            scores = scores.masked_fill(blocked, -float("inf"))
            attn = torch.softmax(scores, dim=-1).masked_fill(blocked, 0.0)
        else:
            attn = torch.softmax(scores, dim=-1)
        context = torch.matmul(attn, v).transpose(1, 2) * self.gates(x).unsqueeze(-1)
        return self.linear_out(context.contiguous().view(b, -1, self.h * self.d_k)), new_cache


class StreamingEncoder(nn.Module):
    def __init__(self, d: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(StreamingAttention(d, 4, 1, 2) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(layers))

    def forward_chunk(
        self,
        xs: Tensor,
        offset: int,
        att_cache: Tensor,
        mask: Tensor | None = None,
        simulate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        time = torch.arange(xs.size(1), device=xs.device, dtype=xs.dtype) + offset
        xs = xs + torch.sin(time * 0.1)[None, :, None]
        if mask is None and simulate:
            mask = torch.ones(xs.size(0), 1, att_cache.size(3) + xs.size(1), dtype=torch.bool)
        caches = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y, cache = layer(norm(xs), mask, att_cache[i])
            xs = xs + y
            caches.append(cache)
        return xs, torch.stack(caches)

    def forward(
        self,
        xs: Tensor,
        att_cache: Tensor,
        offset: int = 4,
        mask: Tensor | None = None,
        simulate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return self.forward_chunk(xs, offset, att_cache, mask, simulate)


def subsequent_chunk_mask(size: Tensor, chunk: int) -> Tensor:
    return size[None, :] < ((size[:, None] // chunk + 1) * chunk)


class ChunkedTrainer(StreamingEncoder):
    """The same layers over a whole utterance with chunk masks and lengths; rows may be empty."""

    def forward(self, xs: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        steps = torch.arange(xs.size(1), device=xs.device)
        valid = (steps[None] < lengths[:, None]).unsqueeze(1)
        mask = valid & subsequent_chunk_mask(steps, 4).unsqueeze(0)
        mask = mask & valid.transpose(1, 2)
        empty = xs.new_zeros(2, xs.size(0), 4, 0, 16)
        return self.forward_chunk(xs, 0, empty, mask)[0]


def _chunk(batch: int = 2, chunk: int = 5, past: int = 6) -> tuple[ModelInput, ...]:
    cache = noise(2, batch, 4, past, 16, seed=1)
    return (
        ModelInput("xs", noise(batch, chunk, 32), {0: "batch", 1: "chunk"}),
        ModelInput("att_cache", cache, {1: "batch", 3: "past"}),
    )


def _utterances(batch: int = 2, frames: int = 10) -> tuple[ModelInput, ...]:
    lengths = torch.tensor([frames - 3 * (i % 2) for i in range(batch)])
    return (
        ModelInput("xs", noise(batch, frames, 32), {0: "batch", 1: "frames"}),
        ModelInput("lengths", lengths, {0: "batch"}),
    )


class WhisperAttention(nn.Module):
    def __init__(self, d: int, heads: int, keep: int) -> None:
        super().__init__()
        self.n_head, self.keep = heads, keep
        self.query, self.value, self.out = (nn.Linear(d, d) for _ in range(3))
        self.key = nn.Linear(d, d, bias=False)
        self.head_gate = nn.Linear(d, heads)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if xa is None else xa
        wv = self.qkv_attention(self.query(x), self.key(source), self.value(source), mask)
        logits = self.head_gate(x)
        kth = logits.sort(dim=-1, descending=True).values[..., self.keep - 1 : self.keep]
        gate = torch.where(logits >= kth, torch.sigmoid(logits), torch.zeros_like(logits))
        wv = wv.unflatten(-1, (self.n_head, -1)) * gate[..., None]
        return self.out(wv.flatten(start_dim=2))

    def qkv_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        n_ctx, d = q.shape[1], q.shape[2]
        scale = (d // self.n_head) ** -0.25
        q = q.view(*q.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        k = k.view(*k.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        v = v.view(*v.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        qk = (q * scale) @ (k * scale).transpose(-1, -2)
        if mask is not None:
            qk = qk + mask[:n_ctx, :n_ctx]
        w = F.softmax(qk.float(), dim=-1).to(q.dtype)
        return (w @ v).permute(0, 2, 1, 3).flatten(start_dim=2)


class WhisperBlock(nn.Module):
    def __init__(self, d: int, cross: bool) -> None:
        super().__init__()
        self.attn, self.attn_ln = WhisperAttention(d, 4, 2), nn.LayerNorm(d)
        self.cross_attn = WhisperAttention(d, 4, 2) if cross else None
        self.cross_attn_ln = nn.LayerNorm(d) if cross else None
        self.mlp, self.mlp_ln = nn.Sequential(nn.Linear(d, 64), nn.GELU()), nn.LayerNorm(d)
        self.down = nn.Linear(64, d)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask=mask)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), xa)
        return x + self.down(self.mlp(self.mlp_ln(x)))


class Whisper(nn.Module):
    """Mel [B, 20, frames] and tokens [B, S] to logits; tied embedding, one mask buffer."""

    mask: Tensor

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(20, d, 3, padding=1), nn.Conv1d(d, d, 3, 2, padding=1)
        self.register_buffer("positional_embedding", torch.randn(64, d) * 0.1)
        self.encoder = WhisperBlock(d, cross=False)
        self.ln_post, self.ln = nn.LayerNorm(d), nn.LayerNorm(d)
        self.token_embedding = nn.Embedding(50, d)
        self.decoder = nn.ModuleList(WhisperBlock(d, cross=True) for _ in range(2))
        self.register_buffer("mask", torch.full((64, 64), float("-inf")).triu_(1), persistent=False)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1)
        positions: Tensor = self.get_buffer("positional_embedding")
        xa = self.ln_post(self.encoder(x + positions[: x.shape[1]]))
        y = self.token_embedding(tokens) + positions[: tokens.shape[-1]]
        for block in self.decoder:
            y = block(y, xa, mask=self.mask)
        return (self.ln(y) @ self.token_embedding.weight.T).float()


def _mel_and_tokens(batch: int = 2, half: int = 8, seq: int = 5) -> tuple[ModelInput, ...]:
    tokens = torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(3))
    return (
        ModelInput("mel", noise(batch, 20, 2 * half), {0: "batch", 2: "2*half"}),
        ModelInput("tokens", tokens, {0: "batch", 1: "seq"}),
    )


_TWO_STAGE = ExpectedLayer(4, 4, 2, 1, "two_stage")
_SIGMOID_TOP = ExpectedLayer(4, 4, 2, 0, "custom")

MODELS: list[ZooModel] = [
    ZooModel(
        "speech_wenet_streaming",
        seeded(StreamingEncoder),
        _chunk,
        Expected((_TWO_STAGE, _TWO_STAGE)),
        "keys and values in one cache [layers, B, H, past, 2D]; int, None, bool arguments",
    ),
    ZooModel(
        "speech_wenet_chunk_mask",
        seeded(ChunkedTrainer),
        _utterances,
        Expected((_TWO_STAGE, _TWO_STAGE)),
        "chunk masks with rows that see nothing: -inf, softmax, masked_fill 0; empty cache inside",
    ),
    ZooModel(
        "speech_whisper",
        seeded(Whisper),
        _mel_and_tokens,
        Expected((_SIGMOID_TOP,) * 5),
        "scale**-0.25 on both; gates where the logit is at least the k-th of a sort",
    ),
]


def _streaming_program() -> ExportedProgram:
    """As saved by a user: None, bool and number among the arguments, `past` may be 0."""
    xs, cache = (item.value for item in _chunk())
    batch, chunk, past = Dim("batch", min=1), Dim("chunk"), Dim("past", min=0)
    return torch.export.export(
        seeded(StreamingEncoder)(),
        (xs, cache, 4, None, False),
        dynamic_shapes=({0: batch, 1: chunk}, {1: batch, 3: past}, None, None, None),
        prefer_deferred_runtime_asserts_over_guards=True,
    )


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {"speech_wenet_streaming": _streaming_program}
"""What the user saved with torch.export.save, by the model's name."""
