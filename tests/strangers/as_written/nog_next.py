"""NO head gates: Qwen3-Next gated attention: sigmoid gates of every CHANNEL of the merged output (dense)."""
import torch, torch.nn.functional as F
from torch import nn


class GatedAttention(nn.Module):
    def __init__(self, dim, heads, kv):
        super().__init__()
        self.h, self.kv, self.d = heads, kv, dim // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, kv * self.d, bias=False), nn.Linear(dim, kv * self.d, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        b, n, _ = x.shape
        q, gate = torch.chunk(self.q_proj(x).view(b, n, -1, self.d * 2), 2, dim=-1)
        gate = gate.reshape(b, n, -1)
        k, v = self.k_proj(x).view(b, n, self.kv, self.d), self.v_proj(x).view(b, n, self.kv, self.d)
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True)
        o = o.transpose(1, 2).reshape(b, n, -1) * torch.sigmoid(gate)
        return self.o_proj(o)


class Net(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.l = nn.ModuleList([GatedAttention(dim, 4, 2) for _ in range(2)])
        self.n = nn.ModuleList([nn.RMSNorm(dim) for _ in range(2)])

    def forward(self, hidden_states):
        for l, n in zip(self.l, self.n):
            hidden_states = hidden_states + l(n(hidden_states))
        return hidden_states


def build():
    torch.manual_seed(30)
    return Net().eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(hidden_states=torch.randn(batch, n, 32))


DYNAMIC = dict(hidden_states={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="channel gates on the merged output")
