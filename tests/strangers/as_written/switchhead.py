"""SwitchHead-like: values and outputs are mixtures of experts per head (sigmoid top-k), plus gates for heads (top-1 of groups, two-stage)."""
import torch, torch.nn.functional as F
from torch import nn


class SwitchHead(nn.Module):
    def __init__(self, dim, heads, n_experts, k, dh):
        super().__init__()
        self.h, self.e, self.k, self.dh = heads, n_experts, k, dh
        self.q, self.kk = nn.Linear(dim, heads * dh, bias=False), nn.Linear(dim, heads * dh, bias=False)
        self.v = nn.Parameter(torch.randn(heads, n_experts, dim, dh) * dim**-0.5)
        self.o = nn.Parameter(torch.randn(heads, n_experts, dh, dim) * dh**-0.5)
        self.sel_v, self.sel_o = nn.Linear(dim, heads * n_experts, bias=False), nn.Linear(dim, heads * n_experts, bias=False)
        self.head_sel = nn.Linear(dim, heads, bias=False)

    def expert_gate(self, x, lin):
        s = lin(x).view(*x.shape[:-1], self.h, self.e).sigmoid()
        v, i = s.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(s).scatter(-1, i, v)

    def forward(self, x):
        b, n, _ = x.shape
        gv, go = self.expert_gate(x, self.sel_v), self.expert_gate(x, self.sel_o)
        q = self.q(x).view(b, n, self.h, self.dh).transpose(1, 2)
        k = self.kk(x).view(b, n, self.h, self.dh).transpose(1, 2)
        v = torch.einsum("bnd,hedf,bnhe->bhnf", x, self.v, gv)
        res = F.scaled_dot_product_attention(q, k, v)
        hs = self.head_sel(x).sigmoid()
        hv, hi = hs.topk(2, dim=-1)
        hg = torch.zeros_like(hs).scatter(-1, hi, hv)
        res = res.transpose(1, 2) * hg[..., None]
        return torch.einsum("bnhf,hefd,bnhe->bnd", res, self.o, go)


class Net(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.l = nn.ModuleList([SwitchHead(dim, 4, 3, 2, 8) for _ in range(2)])
        self.n = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])

    def forward(self, src):
        for l, n in zip(self.l, self.n):
            src = src + l(n(src))
        return src


def build():
    torch.manual_seed(23)
    m = Net()
    for l in m.l:
        for w in (l.sel_v, l.sel_o, l.head_sel):
            nn.init.normal_(w.weight, std=0.4)
    return m.eval()


SIZES = dict(batch=2, n=6)


def inputs(batch=2, n=6):
    return dict(src=torch.randn(batch, n, 32))


DYNAMIC = dict(src={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="head gates behind attention, then expert output maps per head")
