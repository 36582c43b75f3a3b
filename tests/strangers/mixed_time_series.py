"""Forecasting: patches of padded series, interpretable heads, variates as tokens, correlations."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class ResidualScoresAttention(nn.Module):
    """The scores before softmax go on to the next layer, which adds them to its own."""

    def __init__(self, d: int, heads: int, keep: int) -> None:
        super().__init__()
        self.heads, self.keep, self.scale = heads, keep, (d // heads) ** -0.5
        self.W_Q, self.W_K, self.W_V = (nn.Linear(d, d) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(d, d), nn.Dropout(0.1))
        self.router = nn.Linear(d, heads)

    def forward(self, x: Tensor, prev: Tensor | None) -> tuple[Tensor, Tensor]:
        b, n, d = x.shape
        q = self.W_Q(x).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        k = self.W_K(x).view(b, -1, self.heads, d // self.heads).permute(0, 2, 3, 1)
        v = self.W_V(x).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        scores = torch.matmul(q, k) * self.scale
        if prev is not None:
            scores = scores + prev
        output = torch.matmul(F.softmax(scores, dim=-1), v)
        value, index = self.router(x).topk(self.keep, dim=-1)
        gate = torch.zeros(b, n, self.heads).scatter_(-1, index, value.softmax(-1))
        output = torch.einsum("bhnd,bnh->bnhd", output, gate)
        return self.to_out(output.reshape(b, n, d)), scores


class PatchTST(nn.Module):
    """Series [B, C, L] padded to whole patches, channels independent, reversible normalisation."""

    def __init__(self, d: int = 32, patch: int = 8, horizon: int = 6) -> None:
        super().__init__()
        self.patch, self.horizon = patch, horizon
        self.embed = nn.Linear(patch, d)
        self.attention = nn.ModuleList(ResidualScoresAttention(d, 4, 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(d) for _ in range(2))
        self.head = nn.Linear(d, horizon)

    def forward(self, series: Tensor) -> Tensor:
        mean = series.mean(-1, keepdim=True)
        std = torch.sqrt(series.var(-1, keepdim=True, unbiased=False) + 1e-5)
        z = F.pad((series - mean) / std, (0, -series.size(-1) % self.patch), mode="replicate")
        z = z.unfold(-1, self.patch, self.patch)
        b, c, n, _ = z.shape
        u = self.embed(z.reshape(b * c, n, self.patch))
        scores = None
        for layer, norm in zip(self.attention, self.norms, strict=True):
            y, scores = layer(u, scores)
            u = norm((u + y).transpose(1, 2)).transpose(1, 2)
        out = self.head(u.mean(1)).view(b, c, self.horizon)
        return out * std + mean


class InterpretableMultiHeadAttention(nn.Module):
    """One value projection for all heads; heads are averaged, here by their gates."""

    def __init__(self, n_head: int, d_model: int) -> None:
        super().__init__()
        self.n_head, self.d_head = n_head, d_model // n_head
        self.v_layer = nn.Linear(d_model, self.d_head)
        self.q_layers = nn.ModuleList(nn.Linear(d_model, self.d_head) for _ in range(n_head))
        self.k_layers = nn.ModuleList(nn.Linear(d_model, self.d_head) for _ in range(n_head))
        self.w_h = nn.Linear(self.d_head, d_model, bias=False)
        self.selector = nn.Linear(d_model, n_head)

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        probs = torch.softmax(self.selector(q), -1)
        best = torch.topk(probs, 2, dim=-1)[1]
        gate = probs * torch.zeros_like(probs).scatter(-1, best, 1.0)
        heads, attns = [], []
        vs = self.v_layer(k)
        for i in range(self.n_head):
            attn = torch.bmm(self.q_layers[i](q), self.k_layers[i](k).permute(0, 2, 1))
            attn = (attn / math.sqrt(self.d_head)).masked_fill(mask, -1e9).softmax(-1)
            heads.append(torch.bmm(attn, vs) * gate[..., i : i + 1])
            attns.append(attn)
        outputs = torch.mean(torch.stack(heads, dim=2), dim=2)
        return self.w_h(outputs), torch.stack(attns, dim=2)


class TemporalFusion(nn.Module):
    """LSTM over past and future, then interpretable attention of the future on everything."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d, d, batch_first=True)
        self.attn = InterpretableMultiHeadAttention(4, d)
        self.glu, self.norm = nn.Linear(d, 2 * d), nn.LayerNorm(d)
        self.quantiles = nn.Linear(d, 3)

    def forward(self, encoder_cont: Tensor, decoder_cont: Tensor) -> dict[str, Tensor]:
        past, future = encoder_cont.size(1), decoder_cont.size(1)
        h, _ = self.lstm(torch.cat([encoder_cont, decoder_cont], dim=1))
        step = torch.arange(future).unsqueeze(1)
        late = torch.arange(future).unsqueeze(0) >= step
        mask = torch.cat([torch.zeros(future, past, dtype=torch.bool), late], dim=1)
        mask = mask.unsqueeze(0).expand(h.size(0), -1, -1)
        y, weights = self.attn(h[:, past:], h, mask)
        y = self.norm(h[:, past:] + F.glu(self.glu(y), dim=-1))
        return {"prediction": self.quantiles(y), "attention": weights}


class InvertedAttention(nn.Module):
    """Full attention of the b l h e school, its heads summed one by one with index_add."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_projection, self.key_projection = nn.Linear(d, d), nn.Linear(d, d)
        self.value_projection = nn.Linear(d, d)
        self.out_weight = nn.Parameter(torch.randn(heads, d // heads, d))
        self.gate = nn.Linear(d, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q = self.query_projection(x).view(b, n, self.heads, -1)
        k = self.key_projection(x).view(b, n, self.heads, -1)
        v = self.value_projection(x).view(b, n, self.heads, -1)
        scores = torch.einsum("blhe,bshe->bhls", q, k)
        a = torch.softmax(scores / math.sqrt(q.size(-1)), dim=-1)
        out = torch.einsum("bhls,bshd->blhd", a, v)
        score = torch.sigmoid(self.gate(x))
        weight, index = torch.topk(score, 2, dim=-1)
        keep = F.one_hot(index, self.heads).to(x.dtype)
        gate = (keep * weight.unsqueeze(-1)).sum(dim=2)
        each = torch.einsum("blhd,hdo->hblo", out * gate[..., None], self.out_weight)
        target = torch.zeros(self.heads, dtype=torch.int64)
        total = x.new_zeros(1, b, n, d)
        return total.index_add(0, target, each).squeeze(0)


class ITransformer(nn.Module):
    """Each variate is a token; the look-back window is fixed."""

    def __init__(self, d: int = 32, window: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Linear(window, d)
        self.layers = nn.ModuleList(InvertedAttention(d, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.projector = nn.Linear(d, 5)

    def forward(self, x_enc: Tensor) -> Tensor:
        means = x_enc.mean(1, keepdim=True).detach()
        enc = self.embedding((x_enc - means).permute(0, 2, 1))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            enc = norm(enc + layer(enc))
        return self.projector(enc).permute(0, 2, 1) + means


class AutoCorrelation(nn.Module):
    """Heads attend to delays found in the spectrum, not to tokens: no softmax over keys."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.router = nn.Linear(d, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, length, _ = x.shape
        q, k, v = (m(x).view(b, length, self.heads, -1).permute(0, 2, 3, 1) for m in self.parts())
        # The correlation, by a circulant product instead of an FFT (which ONNX lacks in part).
        shift = (torch.arange(length)[:, None] - torch.arange(length)[None, :]) % length
        corr = torch.einsum("bhct,bhcts->bhs", q, k[..., shift])
        weights, delay = torch.topk(corr / (length * q.size(2)), 3, dim=-1)
        weights = torch.softmax(weights, dim=-1)
        index = (torch.arange(length) + delay.unsqueeze(-1)) % length
        rolled = torch.gather(
            v.unsqueeze(2).expand(-1, -1, 3, -1, -1),
            -1,
            index.unsqueeze(3).expand(-1, -1, -1, v.size(2), -1),
        )
        y = (rolled * weights[..., None, None]).sum(2).permute(0, 3, 1, 2)
        gate = self.router(x).softmax(-1)
        gate = gate.masked_fill(gate < gate.topk(2, -1).values[..., -1:], 0.0)
        return self.out((y * gate.unsqueeze(-1)).flatten(2))

    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.q, self.k, self.v


def _series(batch: int = 2, length: int = 45) -> tuple[ModelInput, ...]:
    return (ModelInput("series", noise(batch, 3, length), {0: "batch", 2: "length"}),)


def _past_and_future(batch: int = 2, past: int = 6, future: int = 4) -> tuple[ModelInput, ...]:
    return (
        ModelInput("encoder_cont", noise(batch, past, 32), {0: "batch", 1: "past"}),
        ModelInput("decoder_cont", noise(batch, future, 32, seed=1), {0: "batch", 1: "future"}),
    )


def _variates(batch: int = 2, variates: int = 7) -> tuple[ModelInput, ...]:
    return (ModelInput("x_enc", noise(batch, 24, variates), {0: "batch", 2: "variates"}),)


def _steps(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(batch, 12, 32), {0: "batch"}),)


_CHOSEN = ExpectedLayer(4, 4, 2, 0, "ranked")

MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_patchtst",
        seeded(PatchTST),
        _series,
        Expected((_CHOSEN, _CHOSEN)),
        "padded to a multiple of the patch; scores before softmax handed to the next layer",
    ),
    ZooModel(
        "mixed_tft",
        seeded(TemporalFusion),
        _past_and_future,
        Expected((ExpectedLayer(4, 1, 2, 0, "top_k"),)),
        "loop over heads that share one value and are averaged; attention weights are an output",
    ),
    ZooModel(
        "mixed_itransformer",
        seeded(ITransformer),
        _variates,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),) * 2),
        "heads projected one by one and summed with index_add; one_hot of the indices",
    ),
    ZooModel(
        "mixed_autocorrelation",
        seeded(AutoCorrelation),
        _steps,
        Expected(),
        "delays of an autocorrelation, no keys: gated heads, to be refused by name",
    ),
]
