import torch
from torch import nn
from torch.nn import functional as F


def apply_rotary_emb(x, freqs_cis):
    xshaped = x.float().reshape(*x.shape[:-1], -1, 2)
    freqs_cis = freqs_cis.view(1, xshaped.size(1), 1, xshaped.size(3), 2)
    x_out2 = torch.stack([xshaped[..., 0] * freqs_cis[..., 0] - xshaped[..., 1] * freqs_cis[..., 1],
                          xshaped[..., 1] * freqs_cis[..., 0] + xshaped[..., 0] * freqs_cis[..., 1]], -1)
    return x_out2.flatten(3).type_as(x)


class Attention(nn.Module):
    def __init__(self, dim, n_head, n_local_heads, head_dim, active):
        super().__init__()
        self.wqkv = nn.Linear(dim, (n_head + 2 * n_local_heads) * head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.wg = nn.Linear(dim, n_head, bias=False)
        self.n_head, self.head_dim, self.n_local_heads, self.dim, self.active = n_head, head_dim, n_local_heads, dim, active

    def forward(self, x, freqs_cis, mask, input_pos, k_cache, v_cache):
        bsz, seqlen, _ = x.shape
        kv_size = self.n_local_heads * self.head_dim
        q, k, v = self.wqkv(x).split([self.dim, kv_size, kv_size], dim=-1)
        q = q.view(bsz, seqlen, self.n_head, self.head_dim)
        k = k.view(bsz, seqlen, self.n_local_heads, self.head_dim)
        v = v.view(bsz, seqlen, self.n_local_heads, self.head_dim)
        q, k = apply_rotary_emb(q, freqs_cis), apply_rotary_emb(k, freqs_cis)
        q, k, v = map(lambda t: t.transpose(1, 2), (q, k, v))
        k_cache = k_cache.index_copy(2, input_pos, k)
        v_cache = v_cache.index_copy(2, input_pos, v)
        k = k_cache.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        v = v_cache.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)
        weights = F.softmax(self.wg(x), dim=-1)
        w, e = torch.topk(weights, self.active, dim=-1)
        w = w / w.sum(dim=-1, keepdim=True)
        gate = torch.zeros_like(weights).scatter(-1, e, w)
        y = y.transpose(1, 2).contiguous().view(bsz, seqlen, self.n_head, self.head_dim)
        y = torch.einsum("bshd,bsh->bshd", y, gate).reshape(bsz, seqlen, self.dim)
        return self.wo(y), k_cache, v_cache


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attention = Attention(dim, 8, 4, dim // 8, 3)
        self.w1, self.w2, self.w3 = nn.Linear(dim, 64, bias=False), nn.Linear(64, dim, bias=False), nn.Linear(dim, 64, bias=False)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)

    def forward(self, x, freqs_cis, mask, input_pos, kc, vc):
        a, kc, vc = self.attention(self.attention_norm(x), freqs_cis, mask, input_pos, kc, vc)
        h = x + a
        z = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(z)) * self.w3(z)), kc, vc


class Transformer(nn.Module):
    def __init__(self, dim=64, max_seq=24, n_layer=2):
        super().__init__()
        self.tok_embeddings, self.norm, self.output = nn.Embedding(80, dim), nn.RMSNorm(dim), nn.Linear(dim, 80, bias=False)
        self.layers = nn.ModuleList(Block(dim) for _ in range(n_layer))
        fr = torch.outer(torch.arange(max_seq).float(), 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)))
        self.register_buffer("freqs_cis", torch.stack([fr.cos(), fr.sin()], -1), persistent=False)
        self.register_buffer("causal_mask", torch.tril(torch.ones(max_seq, max_seq, dtype=torch.bool)), persistent=False)

    def forward(self, idx, input_pos, k_caches, v_caches):
        mask = self.causal_mask[None, None, input_pos]
        freqs_cis = self.freqs_cis[input_pos]
        x = self.tok_embeddings(idx)
        ks, vs = [], []
        for i, layer in enumerate(self.layers):
            x, k, v = layer(x, freqs_cis, mask, input_pos, k_caches[i], v_caches[i])
            ks.append(k); vs.append(v)
        return self.output(self.norm(x)), torch.stack(ks), torch.stack(vs)


def build():
    torch.manual_seed(5)
    m = Transformer().eval()
    with torch.no_grad():
        for l in m.layers: l.attention.wg.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=4)
def inputs(batch=2, n=4):
    c = torch.randn(2, batch, 4, 24, 8); v = torch.randn(2, batch, 4, 24, 8)
    return dict(idx=torch.randint(0, 80, (batch, n)), input_pos=torch.arange(7, 7 + n), k_caches=c, v_caches=v)
DYNAMIC = dict(idx={0: "batch", 1: "n"}, input_pos={0: "n"}, k_caches={1: "batch"}, v_caches={1: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="gpt-fast: static caches written at input_pos by index_copy, mask by index, caches stacked over layers")
