"""Speech: encoders over subsampled frames, with lengths, chunks, relative positions and caches."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def make_pad_mask(lengths: Tensor, max_len: int) -> Tensor:
    """True where a frame is padding [B, T]."""
    return torch.arange(max_len, device=lengths.device).unsqueeze(0) >= lengths.unsqueeze(1)


class LegacyRelPositionMultiHeadedAttention(nn.Module):
    """Transformer-XL positions with the shift by a padded column, heads routed by frame."""

    def __init__(self, n_head: int, n_feat: int, keep: int) -> None:
        super().__init__()
        self.d_k, self.h, self.keep = n_feat // n_head, n_head, keep
        self.linear_q = nn.Linear(n_feat, n_feat)
        self.linear_k = nn.Linear(n_feat, n_feat)
        self.linear_v = nn.Linear(n_feat, n_feat)
        self.linear_out = nn.Linear(n_feat, n_feat)
        self.linear_pos = nn.Linear(n_feat, n_feat, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(n_head, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.zeros(n_head, self.d_k))
        self.router = nn.Linear(n_feat, n_head, bias=False)

    def rel_shift(self, x: Tensor) -> Tensor:
        zero_pad = torch.zeros((*x.size()[:3], 1), device=x.device, dtype=x.dtype)
        x_padded = torch.cat([zero_pad, x], dim=-1)
        x_padded = x_padded.view(*x.size()[:2], x.size(3) + 1, x.size(2))
        return x_padded[:, :, 1:].view_as(x)[:, :, :, : x.size(-1) // 2 + 1]

    def forward(self, x: Tensor, pos_emb: Tensor, mask: Tensor | None) -> Tensor:
        n_batch = x.size(0)
        q = self.linear_q(x).view(n_batch, -1, self.h, self.d_k)
        k = self.linear_k(x).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(x).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        p = self.linear_pos(pos_emb).view(pos_emb.size(0), -1, self.h, self.d_k).transpose(1, 2)
        matrix_ac = torch.matmul((q + self.pos_bias_u).transpose(1, 2), k.transpose(-2, -1))
        matrix_bd = torch.matmul((q + self.pos_bias_v).transpose(1, 2), p.transpose(-2, -1))
        scores = (matrix_ac + self.rel_shift(matrix_bd)) / math.sqrt(self.d_k)
        if mask is not None:
            mask = mask.unsqueeze(1).eq(0)
            scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
            attn = torch.softmax(scores, dim=-1).masked_fill(mask, 0.0)
        else:
            attn = torch.softmax(scores, dim=-1)
        out = torch.matmul(attn, v)
        probs = self.router(x).softmax(-1)
        top, index = probs.topk(self.keep, dim=-1)
        gates = torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True))
        out = out * gates.transpose(1, 2).unsqueeze(-1)
        out = out.transpose(1, 2).contiguous().view(n_batch, -1, self.h * self.d_k)
        return self.linear_out(out)


class RelPositionalEncoding(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(1)
        position = torch.arange(length - 1, -length, -1.0, device=x.device).unsqueeze(1)
        div = torch.exp(torch.arange(0, self.d_model, 2) * -(math.log(10000.0) / self.d_model))
        pe = torch.stack([torch.sin(position * div), torch.cos(position * div)], dim=-1)
        return pe.flatten(1).unsqueeze(0)


class ConformerLayer(nn.Module):
    def __init__(self, d: int, heads: int, keep: int) -> None:
        super().__init__()
        self.norm_mha, self.norm_conv, self.norm_final = (nn.LayerNorm(d) for _ in range(3))
        self.self_attn = LegacyRelPositionMultiHeadedAttention(heads, d, keep)
        self.pointwise_conv1 = nn.Conv1d(d, 2 * d, 1)
        self.depthwise_conv = nn.Conv1d(d, d, 3, padding=1, groups=d)
        self.batch_norm = nn.BatchNorm1d(d)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), pos, mask)
        y = F.glu(self.pointwise_conv1(self.norm_conv(x).transpose(1, 2)), dim=1)
        y = F.silu(self.batch_norm(self.depthwise_conv(y)))
        return self.norm_final(x + y.transpose(1, 2))


class ConformerEncoder(nn.Module):
    """Conv2d subsampling by 4 without padding, then two conformer layers; returns lengths, too."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()
        )
        self.out = nn.Linear(8 * 4, d)
        self.pos_enc = RelPositionalEncoding(d)
        self.encoders = nn.ModuleList(ConformerLayer(d, 4, 2) for _ in range(2))

    def forward(self, xs_pad: Tensor, ilens: Tensor) -> tuple[Tensor, Tensor]:
        masks = ~make_pad_mask(ilens, xs_pad.size(1))[:, None, :]
        x = self.conv(xs_pad.unsqueeze(1))
        b, c, t, f = x.size()
        x = self.out(x.transpose(1, 2).contiguous().view(b, t, c * f))
        masks = masks[:, :, :-2:2][:, :, :-2:2]
        pos = self.pos_enc(x)
        for layer in self.encoders:
            x = layer(x, pos, masks)
        return x, masks.squeeze(1).sum(1)


def _frames_and_lengths(batch: int = 2, frames: int = 39) -> tuple[ModelInput, ...]:
    lengths = torch.tensor([frames - 8 * (i % 2) for i in range(batch)])
    return (
        ModelInput("xs_pad", noise(batch, frames, 20), {0: "batch", 1: "frames"}),
        ModelInput("ilens", lengths, {0: "batch"}),
    )


class Wav2VecAttention(nn.Module):
    """bmm over heads folded into the batch, as in fairseq's descendants; sigmoid gates cut off."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, d // heads
        self.k_proj, self.v_proj, self.q_proj = (nn.Linear(d, d) for _ in range(3))
        self.out_proj = nn.Linear(d, d)
        self.gate_proj = nn.Linear(d, heads)

    def _shape(self, tensor: Tensor, seq_len: int, bsz: int) -> Tensor:
        return tensor.view(bsz, seq_len, self.num_heads, self.head_dim).transpose(1, 2).contiguous()

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        bsz, tgt_len, d = hidden.size()
        proj_shape = (bsz * self.num_heads, -1, self.head_dim)
        query = self._shape(self.q_proj(hidden) * self.head_dim**-0.5, tgt_len, bsz)
        query = query.view(*proj_shape)
        key = self._shape(self.k_proj(hidden), tgt_len, bsz).reshape(*proj_shape)
        value = self._shape(self.v_proj(hidden), tgt_len, bsz).reshape(*proj_shape)
        weights = torch.bmm(query, key.transpose(1, 2))
        if attention_mask is not None:
            weights = weights.view(bsz, self.num_heads, tgt_len, tgt_len) + attention_mask
            weights = weights.view(bsz * self.num_heads, tgt_len, tgt_len)
        weights = F.softmax(weights, dim=-1)
        out = torch.bmm(F.dropout(weights, 0.1, self.training), value)
        gate = torch.sigmoid(self.gate_proj(hidden))
        gate = F.threshold(gate, 0.5, 0.0)
        out = out.view(bsz, self.num_heads, tgt_len, self.head_dim).transpose(1, 2)
        out = out.reshape(bsz, tgt_len, d)
        return self.out_proj(out * gate.repeat_interleave(self.head_dim, dim=-1))


class HubertLike(nn.Module):
    """Waveform features with padded strided convolutions: 4*t-3 samples make t frames."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            [nn.Conv1d(1, d, 3, 2, padding=1), nn.Conv1d(d, d, 3, 2, padding=1)]
        )
        self.group_norm = nn.GroupNorm(d, d)
        conv = nn.Conv1d(d, d, 4, padding=2, groups=4)
        self.pos_conv_embed = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.layers = nn.ModuleList(Wav2VecAttention(d, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.masked_spec_embed = nn.Parameter(torch.zeros(d))

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = input_values[:, None]
        for i, conv in enumerate(self.conv_layers):
            x = conv(x)
            x = F.gelu(self.group_norm(x) if i == 0 else x)
        x = x.transpose(1, 2)
        extended = None
        if attention_mask is not None:
            keep = attention_mask[:, ::4].bool()
            x = x.masked_fill(~keep.unsqueeze(-1), 0.0)
            extended = (1.0 - keep[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            extended = extended.expand(x.shape[0], 1, x.shape[1], x.shape[1])
        position = self.pos_conv_embed(x.transpose(1, 2))[:, :, :-1]
        x = x + F.gelu(position).transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x, extended))
        return x


def _waves(batch: int = 2, t: int = 9) -> tuple[ModelInput, ...]:
    samples = 4 * t - 3
    mask = torch.ones(batch, samples, dtype=torch.int64)
    mask[-1, samples - 9 :] = 0
    dims = {0: "batch", 1: "4*t-3"}
    return (
        ModelInput("input_values", noise(batch, samples), dims),
        ModelInput("attention_mask", mask, dims),
    )


_LEGACY = ExpectedLayer(4, 4, 2, 0, "top_k")
_THRESHOLD = ExpectedLayer(4, 4, None, None, "custom")

MODELS: list[ZooModel] = [
    ZooModel(
        "speech_espnet_conformer",
        seeded(ConformerEncoder),
        _frames_and_lengths,
        Expected((_LEGACY, _LEGACY)),
        "rel_shift by a padded column; softmax(...).masked_fill(mask, 0.0); lengths",
    ),
    ZooModel(
        "speech_hubert",
        seeded(HubertLike),
        _waves,
        Expected((_THRESHOLD, _THRESHOLD)),
        "4*t-3 samples; weight_norm on the position convolution; thresholded sigmoids by channel",
    ),
]
