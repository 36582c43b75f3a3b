"""torchtune: caches are modules in an nn.ModuleDict, with buffers written in place by position; masks are rows of a causal table; gates for each head."""
import torch, torch.nn.functional as F
from torch import nn


class KVCache(nn.Module):
    def __init__(self, batch_size, max_seq_len, num_kv_heads, head_dim):
        super().__init__()
        shape = (batch_size, num_kv_heads, max_seq_len, head_dim)
        self.register_buffer("k_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("v_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("cache_pos", torch.arange(0, max_seq_len), persistent=False)

    def update(self, k_val, v_val):
        seq_len = k_val.shape[2]
        k_out, v_out = self.k_cache, self.v_cache
        k_out[:, :, self.cache_pos[:seq_len]] = k_val
        v_out[:, :, self.cache_pos[:seq_len]] = v_val
        self.cache_pos.add_(seq_len)
        return k_out, v_out


class Attn(nn.Module):
    def __init__(self, d, h, kv, dh, top):
        super().__init__()
        self.h, self.kv, self.dh, self.top = h, kv, dh, top
        self.projections = nn.ModuleDict({"q": nn.Linear(d, h * dh, bias=False), "k": nn.Linear(d, kv * dh, bias=False), "v": nn.Linear(d, kv * dh, bias=False), "output": nn.Linear(h * dh, d, bias=False), "router": nn.Linear(d, h)})
    def forward(self, x, mask, cache):
        b, s, _ = x.shape
        p = self.projections
        q = p["q"](x).view(b, s, self.h, self.dh).transpose(1, 2)
        k, v = (p[n](x).view(b, s, self.kv, self.dh).transpose(1, 2) for n in ("k", "v"))
        if cache is not None: k, v = cache.update(k, v)
        k, v = (t.unsqueeze(2).expand(-1, -1, self.h // self.kv, -1, -1).flatten(1, 2) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        probs = p["router"](x).float().softmax(-1)
        w, i = torch.topk(probs, self.top, dim=-1)
        y = y * torch.zeros_like(probs).scatter(-1, i, w).transpose(1, 2).unsqueeze(-1).to(y.dtype)
        return p["output"](y.transpose(1, 2).contiguous().view(b, s, -1))


class TransformerDecoder(nn.Module):
    def __init__(self, d=32, caches=True):
        super().__init__()
        self.tok_embeddings, self.output = nn.Embedding(40, d), nn.Linear(d, 40, bias=False)
        self.layers = nn.ModuleDict({str(i): Attn(d, 4, 2, 8, 2) for i in range(2)})
        self.caches = nn.ModuleDict({str(i): KVCache(2, 16, 2, 8) for i in range(2)}) if caches else None
        self.register_buffer("causal_mask", torch.tril(torch.ones(16, 16, dtype=torch.bool)), persistent=False)
    def forward(self, tokens, input_pos):
        x, mask = self.tok_embeddings(tokens), self.causal_mask[input_pos]
        if self.caches is None: mask = mask[:, :, : tokens.shape[1]]
        for name, layer in self.layers.items():
            x = x + layer(F.rms_norm(x, x.shape[-1:]), mask, self.caches[name] if self.caches is not None else None)
        return self.output(x)


def build():
    torch.manual_seed(107)
    return TransformerDecoder().eval()
def build_without():
    torch.manual_seed(107)
    return TransformerDecoder(caches=False).eval()

SIZES = dict(seq=5)
def inputs(seq=5): return dict(tokens=torch.randint(0, 40, (2, seq)), input_pos=torch.arange(seq)[None].expand(2, -1))
DYNAMIC = dict(tokens={1: "seq"}, input_pos={1: "seq"})
TRUTH = dict(gated=2, sparse=2, notes="torchtune with setup_caches(): state is written in place; a refusal with line and remedy is expected; build_without() has no caches and must be sparse", refuse=True)
