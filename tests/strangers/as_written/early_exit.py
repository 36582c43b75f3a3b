"""Head-wise early exit: a head that is closed for a token in one layer stays closed in later ones (cumulative product of hard decisions)."""
import torch, torch.nn.functional as F
from torch import nn


class ExitAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.stay = nn.Linear(dim, heads)
        self.threshold = nn.Parameter(torch.full((heads,), 0.35), requires_grad=False)

    def forward(self, x, alive):
        b, n, c = x.shape
        q, k, v = (t.view(b, n, self.h, -1).transpose(1, 2) for t in self.qkv(x).split(c, dim=-1))
        conf = self.stay(x).sigmoid()
        alive = alive * conf.ge(self.threshold).to(x.dtype)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        o = torch.einsum("bhnd,bnh->bnhd", o, alive * conf)
        return self.out(o.contiguous().view(b, n, c)), alive


class Net(nn.Module):
    def __init__(self, dim=32, heads=4, depth=3):
        super().__init__()
        self.heads = heads
        self.wte = nn.Embedding(40, dim)
        self.ln = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.attn = nn.ModuleList([ExitAttention(dim, heads) for _ in range(depth)])
        self.lm_head = nn.Linear(dim, 40, bias=False)

    def forward(self, idx):
        x = self.wte(idx)
        alive = torch.ones(*idx.shape, self.heads, dtype=x.dtype, device=x.device)
        for ln, attn in zip(self.ln, self.attn):
            y, alive = attn(ln(x), alive)
            x = x + y
        return self.lm_head(x), alive.mean(-1)


def build():
    torch.manual_seed(21)
    m = Net()
    for a in m.attn:
        nn.init.normal_(a.stay.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9)


def inputs(batch=2, n=9):
    return dict(idx=torch.randint(0, 40, (batch, n)))


DYNAMIC = dict(idx={0: "batch", 1: "n"})
TRUTH = dict(gated=3, sparse=3, notes="gates depend on the gates of earlier layers")
