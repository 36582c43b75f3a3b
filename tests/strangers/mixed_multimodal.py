"""Images beside text: two towers, learned queries, gated cross-attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def mha_forward(
    query: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: nn.Linear,
    num_heads: int,
    head_gate: Tensor,
    attn_mask: Tensor | None = None,
    need_weights: bool = False,
    average_attn_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """A copy of PyTorch's function for [T, B, C] with `head_gate` [T, B, H]."""
    tgt_len, bsz, embed_dim = query.shape
    head_dim = embed_dim // num_heads
    proj = F.linear(query, in_proj_weight, in_proj_bias)
    proj = proj.unflatten(-1, (3, embed_dim)).unsqueeze(0).transpose(0, -2).squeeze(-2)
    q, k, v = proj.contiguous().chunk(3)
    q = q[0].view(tgt_len, bsz * num_heads, head_dim).transpose(0, 1)
    k = k[0].view(tgt_len, bsz * num_heads, head_dim).transpose(0, 1)
    v = v[0].view(tgt_len, bsz * num_heads, head_dim).transpose(0, 1)
    q = q * head_dim**-0.5
    if attn_mask is not None:
        weights = torch.baddbmm(attn_mask, q, k.transpose(-2, -1))
    else:
        weights = torch.bmm(q, k.transpose(-2, -1))
    weights = F.softmax(weights, dim=-1)
    out = torch.bmm(weights, v)
    out = out * head_gate.reshape(tgt_len, bsz * num_heads, 1).transpose(0, 1)
    out = out.transpose(0, 1).contiguous().view(tgt_len * bsz, embed_dim)
    out = out_proj(out).view(tgt_len, bsz, embed_dim)
    if not need_weights:
        return out, None
    weights = weights.view(bsz, num_heads, tgt_len, tgt_len)
    return out, weights.mean(dim=1) if average_attn_weights else weights


class ResidualAttentionBlock(nn.Module):
    def __init__(self, d: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.MultiheadAttention(d, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.head_router = nn.Linear(d, heads, bias=False)
        self.c_fc, self.c_proj = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.register_buffer("mask", mask, persistent=False)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        probs = self.head_router(x).softmax(dim=-1)
        keep = F.one_hot(probs.topk(2, dim=-1)[1], self.heads).sum(dim=-2)
        mask = None if self.mask is None else self.mask[: x.size(0), : x.size(0)]
        return mha_forward(
            x,
            self.attn.in_proj_weight,
            self.attn.in_proj_bias,
            self.attn.out_proj,
            self.heads,
            probs * keep,
            mask,
            need_weights=self.mask is None,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, weights = self.attention(self.ln_1(x))
        x = x + y
        h = self.c_fc(self.ln_2(x))
        return x + self.c_proj(h * torch.sigmoid(1.702 * h)), weights


class CLIP(nn.Module):
    """An image tower and a causal text tower whose last token (the largest id) is the embedding."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(d))
        self.visual_pos = nn.Parameter(torch.randn(10, d))
        self.token_embedding, self.text_pos = nn.Embedding(60, d), nn.Parameter(torch.randn(16, d))
        causal = torch.full((16, 16), float("-inf")).triu_(1)
        self.visual = ResidualAttentionBlock(d, 4, None)
        self.transformer = nn.ModuleList(ResidualAttentionBlock(d, 4, causal) for _ in range(2))
        self.ln_post, self.ln_final = nn.LayerNorm(d), nn.LayerNorm(d)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.size(0), 1, -1), x], dim=1) + self.visual_pos
        x, weights = self.visual(x.permute(1, 0, 2))
        image_features = F.normalize(self.ln_post(x[0]), dim=-1)
        y = (self.token_embedding(text) + self.text_pos[: text.size(1)]).permute(1, 0, 2)
        for block in self.transformer:
            y, _ = block(y)
        y = self.ln_final(y.permute(1, 0, 2))
        y = F.normalize(y[torch.arange(y.size(0)), text.argmax(dim=-1)], dim=-1)
        return self.logit_scale.exp() * image_features @ y.t(), weights


def _images_and_text(images: int = 2, texts: int = 3, seq: int = 7) -> tuple[ModelInput, ...]:
    text = torch.randint(0, 60, (texts, seq), generator=torch.Generator().manual_seed(4))
    return (
        ModelInput("image", noise(images, 3, 12, 12), {0: "images"}),
        ModelInput("text", text, {0: "texts", 1: "seq"}),
    )


class QFormerAttention(nn.Module):
    def __init__(self, d: int, heads: int, d_kv: int) -> None:
        super().__init__()
        self.num_heads, self.size = heads, d // heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d_kv, d), nn.Linear(d_kv, d)
        self.dense, self.LayerNorm = nn.Linear(d, d), nn.LayerNorm(d)
        self.wg = nn.Linear(d, heads, bias=False)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, encoder: Tensor | None, mask: Tensor | None) -> Tensor:
        source = x if encoder is None else encoder
        key = self.transpose_for_scores(self.key(source))
        value = self.transpose_for_scores(self.value(source))
        scores = self.transpose_for_scores(self.query(x)) @ key.transpose(-1, -2)
        scores = scores / self.size**0.5
        if mask is not None:
            scores = scores + mask
        context = nn.functional.softmax(scores, dim=-1) @ value
        probs = torch.softmax(self.wg(x), dim=-1)
        values, indices = torch.topk(probs, 2, dim=-1)
        values = values / values.sum(dim=-1, keepdim=True)
        gate = torch.zeros_like(probs).scatter_add(-1, indices, values)
        context = context.permute(0, 2, 1, 3).contiguous()
        context = gate.unsqueeze(-1) * context
        context = context.view(*context.size()[:-2], -1)
        return self.LayerNorm(self.dense(context) + x)


class QFormer(nn.Module):
    """Learned queries joined with text; only the queries look at the image."""

    def __init__(self, d: int = 32, queries: int = 4) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, queries, d))
        self.embeddings = nn.Embedding(50, d)
        self.first_cross = QFormerAttention(d, 4, 24)
        self.self_attn, self.cross = QFormerAttention(d, 4, d), QFormerAttention(d, 4, 24)

    def forward(self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        queries = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        count = queries.shape[1]
        queries = self.first_cross(queries, image_embeds, None)
        x = torch.cat([queries, self.embeddings(input_ids)], dim=1)
        ones = torch.ones(queries.size()[:-1], dtype=torch.long)
        mask = torch.cat([ones, attention_mask], dim=1)[:, None, None, :].to(x.dtype)
        x = self.self_attn(x, None, (1.0 - mask) * -10000.0)
        seen = self.cross(x[:, :count], image_embeds, None)
        return torch.cat([seen, x[:, count:]], dim=1)


def _patches_and_ids(batch: int = 2, patches: int = 9, seq: int = 6) -> tuple[ModelInput, ...]:
    ids = torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(6))
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[-1, -2:] = 0
    return (
        ModelInput("image_embeds", noise(batch, patches, 24), {0: "batch", 1: "patches"}),
        ModelInput("input_ids", ids, {0: "batch", 1: "seq"}),
        ModelInput("attention_mask", mask, {0: "batch", 1: "seq"}),
    )


class GatedCrossAttentionBlock(nn.Module):
    """Flamingo: one learned scalar opens the block; no head is chosen, no MoH layer."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(d)
        self.to_q, self.to_kv = nn.Linear(d, d, bias=False), nn.Linear(d, 2 * d, bias=False)
        self.to_out = nn.Linear(d, d, bias=False)
        self.attn_gate = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor, media: Tensor) -> Tensor:
        b, t, m, d = media.shape
        media = media.reshape(b, t * m, d)
        k, v = self.to_kv(media).chunk(2, dim=-1)
        q, k, v = (
            each.view(b, -1, self.heads, d // self.heads).transpose(1, 2)
            for each in (self.to_q(self.norm(x)), k, v)
        )
        sim = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        out = (sim.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, -1, d)
        return self.to_out(out) * self.attn_gate.tanh() + x


def _text_and_media(batch: int = 2, seq: int = 5, images: int = 2) -> tuple[ModelInput, ...]:
    return (
        ModelInput("x", noise(batch, seq, 32), {0: "batch", 1: "seq"}),
        ModelInput("media", noise(batch, images, 3, 32, seed=1), {0: "batch", 1: "images"}),
    )


MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_clip",
        seeded(CLIP),
        _images_and_text,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),) * 3),
        "a copy of multi_head_attention_forward in [T, B, C], with averaged weights as an output",
    ),
    ZooModel(
        "mixed_qformer",
        seeded(QFormer),
        _patches_and_ids,
        Expected(
            (
                ExpectedLayer(4, 4, 2, 0, "constant"),
                ExpectedLayer(4, 4, 2, 0, "top_k"),
                ExpectedLayer(4, 4, 2, 0, "top_k"),
            )
        ),
        "the first cross-attention's queries and gates are learned constants; queries are a slice",
    ),
    ZooModel(
        "mixed_flamingo",
        seeded(GatedCrossAttentionBlock),
        _text_and_media,
        Expected(),
        "tanh of one scalar gates the whole block: there is no MoH layer, and none may be found",
    ),
]
