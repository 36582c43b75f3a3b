import torch
from torch import nn
import torch.nn.functional as F


class OlmoAttention(nn.Module):
    """OLMo 2: norm of q and k over the whole width, clip_qkv, post-norm; one router logit vector for heads AND experts."""
    def __init__(self, d, h):
        super().__init__()
        self.h, self.fused_dims, self.clip_qkv = h, (d, d, d), 8.0
        self.att_proj, self.attn_out, self.q_norm, self.k_norm = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False), nn.RMSNorm(d), nn.RMSNorm(d)

    def forward(self, x, w):
        B, T, C = x.size()
        qkv = self.att_proj(x)
        qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        q, k, v = qkv.split(self.fused_dims, dim=-1)
        q, k = self.q_norm(q).to(dtype=v.dtype), self.k_norm(k).to(dtype=v.dtype)
        q, k, v = (t.view(B, T, self.h, C // self.h).transpose(1, 2) for t in (q, k, v))
        att = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        att = att.transpose(1, 2).contiguous().view(B, T, C)
        att = att * w.repeat_interleave(C // self.h, dim=-1)
        return self.attn_out(att)


class Block(nn.Module):
    def __init__(self, d, h, e):
        super().__init__()
        self.h, self.e, self.attn, self.router = h, e, OlmoAttention(d, h), nn.Linear(d, h + e, bias=False)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(d, 32), nn.SiLU(), nn.Linear(32, d)) for _ in range(e)])
        self.n1, self.n2 = nn.RMSNorm(d), nn.RMSNorm(d)

    @staticmethod
    def choose(logits, k):
        p = F.softmax(logits, dim=1, dtype=torch.float)
        w, sel = torch.topk(p, k, dim=-1)
        w = w / w.sum(dim=-1, keepdim=True)
        return torch.zeros_like(p).scatter_(1, sel, w)

    def forward(self, x):
        B, T, C = x.shape
        router_logits = self.router(x.reshape(-1, C))
        heads, experts = router_logits.split([self.h, self.e], dim=-1)
        hw = self.choose(heads, self.h // 2).view(B, T, -1)
        x = x + self.n1(self.attn(x, hw))
        ew = self.choose(experts, 2).view(B, T, -1)
        y = sum(ew[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        return x + self.n2(y), router_logits


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.wte, self.blocks, self.ln_f = nn.Embedding(60, d), nn.ModuleList([Block(d, 4, 4) for _ in range(2)]), nn.RMSNorm(d)

    def forward(self, input_ids):
        x, logits = self.wte(input_ids), []
        for b in self.blocks:
            x, r = b(x)
            logits.append(r)
        return {"logits": F.linear(self.ln_f(x), self.wte.weight), "router_logits": tuple(logits)}


def build():
    torch.manual_seed(31)
    m = M().eval()
    with torch.no_grad():
        for b in m.blocks: b.router.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=9)
def inputs(batch=2, n=9): return dict(input_ids=torch.randint(0, 60, (batch, n)))
DYNAMIC = dict(input_ids={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="OLMoE hybrid: one linear routes heads and experts of flattened tokens, gate spread by repeat_interleave onto channels, router logits returned in a tuple")
