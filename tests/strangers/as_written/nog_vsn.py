import torch
from torch import nn


class M(nn.Module):
    """TFT's variable selection by top-k, then torch's own nn.MultiheadAttention, then a mask on tokens."""
    def __init__(self, d=32, nv=4):
        super().__init__()
        self.emb, self.sel = nn.ModuleList([nn.Linear(1, d) for _ in range(nv)]), nn.Linear(nv * d, nv)
        self.mha, self.gate, self.norm, self.out = nn.MultiheadAttention(d, 4, batch_first=True), nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, 2)

    def forward(self, x, mask):
        v = torch.stack([e(x[..., i : i + 1]) for i, e in enumerate(self.emb)], -2)
        w = torch.softmax(self.sel(v.flatten(-2)), -1)
        top, idx = w.topk(2, -1)
        w = torch.zeros_like(w).scatter(-1, idx, top)
        h = (v * w.unsqueeze(-1)).sum(-2)
        a, _ = self.mha(h, h, h, need_weights=False, key_padding_mask=mask)
        a = a * torch.sigmoid(self.gate(h)) * (~mask).unsqueeze(-1)
        return self.out(self.norm(h + a))


def build():
    torch.manual_seed(26)
    m = M().eval()
    with torch.no_grad(): m.sel.weight.mul_(5)
    return m

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8):
    mask = torch.zeros(batch, n, dtype=torch.bool); mask[0, -2:] = True
    return dict(x=torch.randn(batch, n, 4), mask=mask)
DYNAMIC = dict(x={0: "batch", 1: "n"}, mask={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="no gates on heads: variables are selected by top-k (a router that weighs no attention), nn.MultiheadAttention, GLU gate of channels")
