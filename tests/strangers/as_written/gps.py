"""GraphGPS: local message passing on a dense adjacency plus global attention; hard-concrete head gates (stretched sigmoid, clamped) per node with temperature."""
import torch, torch.nn.functional as F
from torch import nn


class HardConcrete(nn.Module):
    def __init__(self, dim, heads, beta=0.66, zeta=1.1, gamma=-0.1):
        super().__init__()
        self.loc = nn.Linear(dim, heads)
        self.beta, self.zeta, self.gamma = beta, zeta, gamma

    def forward(self, x):
        a = self.loc(x)
        if self.training:
            u = torch.rand_like(a).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (1 - u).log() + a) / self.beta)
        else:
            s = torch.sigmoid(a)
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)


class GPSLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.msg, self.upd = nn.Linear(d, d), nn.Linear(d, d)
        self.in_proj, self.out_proj, self.gate = nn.Linear(d, 3 * d), nn.Linear(d, d), HardConcrete(d, h)
        self.norm1_local, self.norm1_attn, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def global_attn(self, x, mask):
        q, k, v = self.in_proj(x).chunk(3, -1)
        q, k, v = (torch.stack(t.split(t.shape[-1] // self.h, -1), 1) for t in (q, k, v))  # [b, h, n, d]
        s = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        s = s.masked_fill(~mask[:, None, None], -1e9)
        o = torch.einsum("bhij,bhjd->bihd", s.softmax(-1), v)
        return self.out_proj((self.gate(x)[..., None] * o).flatten(2))

    def forward(self, x, adj, mask):
        local = self.upd(F.relu(torch.bmm(adj, self.msg(x)))) + x
        h = self.norm1_local(local) + self.norm1_attn(x + self.global_attn(x, mask))
        return self.norm2(h + self.ff(h))


class GPS(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.node, self.pe = nn.Linear(6, d - 8), nn.Linear(4, 8)
        self.layers = nn.ModuleList([GPSLayer(d, h) for _ in range(2)])
        self.out = nn.Linear(d, 3)

    def forward(self, x, pe, adj, mask):
        h = torch.cat([self.node(x), self.pe(pe)], -1)
        for l in self.layers:
            h = l(h, adj, mask)
        m = mask.unsqueeze(-1).to(h.dtype)
        return self.out((h * m).sum(1) / m.sum(1))


def build():
    torch.manual_seed(19)
    m = GPS()
    for l in m.layers:
        nn.init.normal_(l.gate.loc.weight, std=1.0)
    return m.eval()


SIZES = dict(batch=2, n=8)


def inputs(batch=2, n=8):
    mask = torch.arange(n)[None] < torch.randint(2, n + 1, (batch, 1))
    adj = (torch.rand(batch, n, n) > 0.6).float() * mask[:, None] * mask[..., None]
    return dict(x=torch.randn(batch, n, 6), pe=torch.randn(batch, n, 4), adj=adj, mask=mask)


DYNAMIC = dict(x={0: "batch", 1: "n"}, pe={0: "batch", 1: "n"}, adj={0: "batch", 1: "n", 2: "n"}, mask={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="hard concrete gates (L0 heads) per token: exact zeros by clamp; heads by split and stack")
