"""SAM2 two-way transformer: attention with downsampled inner dim; three gated attentions in one block."""
import torch, torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, embedding_dim, num_heads, downsample_rate=1, active=2):
        super().__init__()
        self.internal_dim, self.num_heads, self.active = embedding_dim // downsample_rate, num_heads, active
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(embedding_dim, self.internal_dim) for _ in range(3))
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)
        self.head_logits = nn.Linear(embedding_dim, num_heads)

    def _separate_heads(self, x, num_heads):
        b, n, c = x.shape
        return x.reshape(b, n, num_heads, c // num_heads).transpose(1, 2)

    def _recombine_heads(self, x):
        b, n_heads, n_tokens, c_per_head = x.shape
        return x.transpose(1, 2).reshape(b, n_tokens, n_heads * c_per_head)

    def forward(self, q, k, v):
        logits = self.head_logits(q)
        if self.training:
            logits = logits + torch.randn_like(logits)
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (self._separate_heads(t, self.num_heads) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        val, idx = logits.topk(self.active, dim=-1)
        gates = torch.full_like(logits, float("-inf")).scatter(-1, idx, val).softmax(-1)
        out = out * gates.transpose(1, 2)[..., None]
        return self.out_proj(self._recombine_heads(out))


class TwoWayAttentionBlock(nn.Module):
    def __init__(self, dim, heads, skip_first_layer_pe=False):
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.cross_attn_token_to_image = Attention(dim, heads, 2)
        self.cross_attn_image_to_token = Attention(dim, heads, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, dim))
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(self, queries, keys, query_pe, key_pe):
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries))
        return queries, keys


class MaskDecoder(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(3, dim)
        self.layers = nn.ModuleList([TwoWayAttentionBlock(dim, heads, True)])
        self.final = Attention(dim, heads, 2)
        self.norm = nn.LayerNorm(dim)
        self.iou = nn.Linear(dim, 3)

    def forward(self, image_embeddings, image_pe, sparse_prompt_embeddings):
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], 0).unsqueeze(0).expand(sparse_prompt_embeddings.size(0), -1, -1)
        tokens = torch.cat((tokens, sparse_prompt_embeddings), dim=1)
        b, c, h, w = image_embeddings.shape
        src = image_embeddings.flatten(2).permute(0, 2, 1)
        pe = image_pe.flatten(2).permute(0, 2, 1)
        queries, keys = tokens, src
        for l in self.layers:
            queries, keys = l(queries, keys, tokens, pe)
        queries = self.norm(queries + self.final(q=queries + tokens, k=keys + pe, v=keys))
        masks = (queries[:, 1:4] @ keys.transpose(1, 2)).view(b, 3, h, w)
        return masks, self.iou(queries[:, 0])


def build():
    torch.manual_seed(13)
    m = MaskDecoder()
    for x in m.modules():
        if isinstance(x, Attention):
            nn.init.normal_(x.head_logits.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, points=3)


def inputs(batch=2, points=3):
    return dict(image_embeddings=torch.randn(batch, 32, 4, 5), image_pe=torch.randn(1, 32, 4, 5), sparse_prompt_embeddings=torch.randn(batch, points, 32))


DYNAMIC = dict(image_embeddings={0: "batch"}, sparse_prompt_embeddings={0: "batch", 1: "points"})
TRUTH = dict(gated=4, sparse=4, notes="noise only in training; softmax of scattered top-k logits; image_pe has batch 1 and broadcasts")
