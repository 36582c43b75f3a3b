"""MoA (mixture of attention heads): each expert has its own query and output projection, keys and values are shared; a token chooses k experts. Dense form."""
import torch, torch.nn.functional as F
from torch import nn


class MoA(nn.Module):
    def __init__(self, dim, experts, k, d_head):
        super().__init__()
        self.k, self.E, self.d = k, experts, d_head
        self.w_q = nn.Parameter(torch.randn(experts, dim, d_head) * dim**-0.5)
        self.w_o = nn.Parameter(torch.randn(experts, d_head, dim) * d_head**-0.5)
        self.kv_proj = nn.Linear(dim, 2 * d_head, bias=False)
        self.w_gate = nn.Parameter(torch.randn(dim, experts) * 0.5)
        self.w_noise = nn.Parameter(torch.randn(dim, experts) * 0.1)

    def top_k_gating(self, x):
        logits = x @ self.w_gate
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(x @ self.w_noise)
        probs = torch.softmax(logits, dim=-1)
        top_g, top_i = probs.topk(self.k, dim=-1)
        top_g = top_g / (top_g.sum(-1, keepdim=True) + 1e-6)
        return torch.zeros_like(probs).scatter(-1, top_i, top_g)

    def forward(self, x, mask):
        g = self.top_k_gating(x)
        q = torch.einsum("bld,edh->bleh", x, self.w_q)
        k, v = self.kv_proj(x).chunk(2, dim=-1)
        s = torch.einsum("bieh,bjh->beij", q, k) / self.d**0.5
        s = s + mask
        o = torch.einsum("beij,bjh->bieh", torch.softmax(s, -1), v)
        return torch.einsum("bieh,bie,ehd->bid", o, g, self.w_o)


class Net(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.emb = nn.Linear(5, dim)
        self.layers = nn.ModuleList([MoA(dim, 6, 2, 8) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])

    def forward(self, x):
        n = x.shape[1]
        mask = torch.full((n, n), float("-inf")).triu(1)
        x = self.emb(x)
        for a, nm in zip(self.layers, self.norms):
            x = x + a(nm(x), mask)
        return x


def build():
    torch.manual_seed(22)
    return Net().eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 5))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="multi-query; gates in a three-operand einsum with the output projection")
