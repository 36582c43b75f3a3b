import torch
from torch import nn
import torch.nn.functional as F


class Attn(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h, self.wq, self.wk, self.wv, self.wo, self.r = h, *(nn.Linear(d, d, bias=False) for _ in range(4)), nn.Linear(d, h)

    def forward(self, x, pos):
        b, n, d = x.shape
        q, k, v = (w(x).view(b, n, self.h, d // self.h).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        mask = pos[:, None, :, None] >= pos[:, None, None, :]   # causal by the original positions
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        s = self.r(x).softmax(-1)
        v_, i_ = s.topk(2, -1)
        g = torch.zeros_like(s).scatter(-1, i_, v_ / v_.sum(-1, keepdim=True))
        return self.wo(torch.einsum("bhnd,bnh->bnhd", y, g).flatten(2))


class MoDBlock(nn.Module):
    """Mixture of depths: the block runs on the best half of the tokens, the others go by."""
    def __init__(self, d, h):
        super().__init__()
        self.token_router, self.n1, self.n2, self.attn = nn.Linear(d, 1, bias=False), nn.LayerNorm(d), nn.LayerNorm(d), Attn(d, h)
        self.mlp = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d))

    def forward(self, x):
        b, n, d = x.shape
        k = n // 2
        w = self.token_router(x).squeeze(-1)
        top, idx = torch.topk(w, k, dim=1, sorted=False)
        idx, order = torch.sort(idx, dim=1)
        top = torch.gather(top, 1, order)
        index = idx.unsqueeze(-1).expand(-1, -1, d)
        t = torch.gather(x, 1, index)
        y = self.attn(self.n1(t), idx)
        y = y + self.mlp(self.n2(t + y))
        return torch.scatter_add(x, 1, index, y * torch.sigmoid(top).unsqueeze(-1))


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.b, self.n = nn.Embedding(60, d), nn.ModuleList([MoDBlock(d, 4) for _ in range(2)]), nn.LayerNorm(d)

    def forward(self, ids):
        x = self.e(ids)
        for b in self.b: x = b(x)
        return self.n(x)


def build():
    torch.manual_seed(33)
    m = M().eval()
    with torch.no_grad():
        for b in m.b: b.attn.r.weight.mul_(6); b.token_router.weight.mul_(4)
    return m

SIZES = dict(batch=2, n=12)
def inputs(batch=2, n=12): return dict(ids=torch.randint(0, 60, (batch, n)))
DYNAMIC = dict(ids={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="Mixture of depths around MoH: tokens gathered by top-k of n//2, causal mask by original positions")
