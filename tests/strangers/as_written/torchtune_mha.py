import torch
from torch import nn
import torch.nn.functional as F


class RotaryPositionalEmbeddings(nn.Module):
    def __init__(self, dim, max_seq_len=64, base=10_000):
        super().__init__()
        theta = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        idx_theta = torch.einsum("i, j -> ij", torch.arange(max_seq_len).float(), theta)
        self.register_buffer("cache", torch.stack([torch.cos(idx_theta), torch.sin(idx_theta)], dim=-1), persistent=False)

    def forward(self, x, *, input_pos=None):
        seq_len = x.size(1)
        rope_cache = self.cache[:seq_len] if input_pos is None else self.cache[input_pos]
        xshaped = x.float().reshape(*x.shape[:-1], -1, 2)
        rope_cache = rope_cache.view(-1, xshaped.size(1), 1, xshaped.size(3), 2)
        x_out = torch.stack([xshaped[..., 0] * rope_cache[..., 0] - xshaped[..., 1] * rope_cache[..., 1],
                             xshaped[..., 1] * rope_cache[..., 0] + xshaped[..., 0] * rope_cache[..., 1]], -1)
        return x_out.flatten(3).type_as(x)


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, num_kv_heads, head_dim, num_active_heads, pos_embeddings):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.k = num_heads, num_kv_heads, head_dim, num_active_heads
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=False)
        self.output_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=False)
        self.head_router = nn.Linear(embed_dim, num_heads, bias=False)
        self.pos_embeddings = pos_embeddings

    def forward(self, x, y=None, *, mask=None, input_pos=None):
        b, s_x, _ = x.shape
        s_y = y.shape[1] if y is not None else 0
        q = self.q_proj(x)
        q_per_kv = self.num_heads // self.num_kv_heads
        q = q.view(b, s_x, self.num_kv_heads * q_per_kv, self.head_dim)
        q = self.pos_embeddings(q, input_pos=input_pos).transpose(1, 2)
        k = self.k_proj(y).view(b, s_y, -1, self.head_dim)
        v = self.v_proj(y).view(b, s_y, -1, self.head_dim)
        k = self.pos_embeddings(k, input_pos=input_pos)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        expand_shape = (b, self.num_kv_heads, q_per_kv, -1, self.head_dim)
        k = k.unsqueeze(2).expand(expand_shape).flatten(1, 2)
        v = v.unsqueeze(2).expand(expand_shape).flatten(1, 2)
        if mask is not None:
            mask = mask[:, None, :, :]
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)
        probs = F.softmax(self.head_router(x).float(), dim=-1)
        top, idx = torch.topk(probs, self.k, dim=-1)
        head_weights = torch.zeros_like(probs).scatter_(-1, idx, top).type_as(x)
        output = output.transpose(1, 2).contiguous() * head_weights.unsqueeze(-1)
        return self.output_proj(output.view(b, s_x, -1))


class TransformerSelfAttentionLayer(nn.Module):
    def __init__(self, attn, dim):
        super().__init__()
        self.attn, self.sa_norm, self.mlp_norm = attn, nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.w1, self.w2, self.w3 = nn.Linear(dim, 64, bias=False), nn.Linear(64, dim, bias=False), nn.Linear(dim, 64, bias=False)

    def forward(self, x, *, mask=None, input_pos=None):
        h = self.sa_norm(x)
        h = self.attn(h, h, mask=mask, input_pos=input_pos) + x
        z = self.mlp_norm(h)
        return h + self.w2(F.silu(self.w1(z)) * self.w3(z))


class TransformerDecoder(nn.Module):
    def __init__(self, dim=48, vocab=50):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        rope = RotaryPositionalEmbeddings(8)
        self.layers = nn.ModuleList([TransformerSelfAttentionLayer(MultiHeadAttention(dim, 6, 2, 8, 3, rope), dim) for _ in range(2)])
        self.norm, self.output = nn.RMSNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens, mask, input_pos):
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h, mask=mask, input_pos=input_pos)
        return self.output(self.norm(h)).float()


def build():
    torch.manual_seed(1)
    m = TransformerDecoder().eval()
    with torch.no_grad():
        for l in m.layers: l.attn.head_router.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=9)
def inputs(batch=2, n=9):
    # packed documents: block-causal mask
    doc = (torch.rand(batch, n) < 0.2).long().cumsum(1)
    mask = (doc[:, :, None] == doc[:, None]) & torch.ones(n, n).tril().bool()
    return dict(tokens=torch.randint(0, 50, (batch, n)), mask=mask, input_pos=torch.arange(n).expand(batch, n).contiguous())
DYNAMIC = dict(tokens={0: "batch", 1: "n"}, mask={0: "batch", 1: "n", 2: "n"}, input_pos={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="torchtune: softmax top-k, weights as they are; packed documents' mask as input; GQA by expand")
