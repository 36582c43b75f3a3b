import torch
from torch import nn


def permute_final_dims(t, inds):
    zero_index = -1 * len(inds)
    first = list(range(len(t.shape[:zero_index])))
    return t.permute(first + [zero_index + i for i in inds])

def flatten_final_dims(t, n): return t.reshape(t.shape[:-n] + (-1,))


class Attention(nn.Module):
    def __init__(self, c, c_hidden, no_heads, active):
        super().__init__()
        self.c_hidden, self.no_heads, self.active = c_hidden, no_heads, active
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(c, c_hidden * no_heads, bias=False) for _ in range(3))
        self.linear_o, self.linear_g = nn.Linear(c_hidden * no_heads, c), nn.Linear(c, c_hidden * no_heads)
        self.linear_h = nn.Linear(c, no_heads)

    def forward(self, q_x, kv_x, biases):
        q, k, v = self.linear_q(q_x), self.linear_k(kv_x), self.linear_v(kv_x)
        q, k, v = (t.view(t.shape[:-1] + (self.no_heads, -1)).transpose(-2, -3) for t in (q, k, v))
        q = q / self.c_hidden**0.5
        key = permute_final_dims(k, (1, 0))
        a = torch.matmul(q, key)
        for b in biases: a = a + b
        a = torch.nn.functional.softmax(a, -1)
        o = torch.matmul(a, v).transpose(-2, -3)
        g = torch.sigmoid(self.linear_g(q_x)).view(o.shape[:-1] + (-1,))
        o = o * g
        h = torch.softmax(self.linear_h(q_x), -1)
        val, idx = h.topk(self.active, -1)
        h = torch.zeros_like(h).scatter(-1, idx, val / val.sum(-1, keepdim=True))
        o = o * h.unsqueeze(-1)
        return self.linear_o(flatten_final_dims(o, 2))


class TriangleAttention(nn.Module):
    def __init__(self, c, c_hidden, heads, starting):
        super().__init__()
        self.starting, self.layer_norm, self.linear, self.mha = starting, nn.LayerNorm(c), nn.Linear(c, heads, bias=False), Attention(c, c_hidden, heads, 2)

    def forward(self, x, mask):
        if not self.starting: x, mask = x.transpose(-2, -3), mask.transpose(-1, -2)
        x = self.layer_norm(x)
        mask_bias = (1e9 * (mask - 1))[..., :, None, None, :]
        triangle_bias = permute_final_dims(self.linear(x), (2, 0, 1)).unsqueeze(-4)
        x = self.mha(q_x=x, kv_x=x, biases=[mask_bias, triangle_bias])
        return x if self.starting else x.transpose(-2, -3)


class PairStack(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.start, self.end = TriangleAttention(c, 8, 4, True), TriangleAttention(c, 8, 4, False)
        self.transition = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.ReLU(), nn.Linear(2 * c, c))

    def forward(self, z, pair_mask):
        z = z + self.start(z, pair_mask)
        z = z + self.end(z, pair_mask)
        return z + self.transition(z) * pair_mask.unsqueeze(-1)


def build():
    torch.manual_seed(21)
    m = PairStack().eval()
    with torch.no_grad():
        for t in (m.start, m.end): t.mha.linear_h.weight.mul_(8)
    return m

SIZES = dict(batch=2, n=6)
def inputs(batch=2, n=6):
    seq = torch.ones(batch, n); seq[0, -1] = 0
    return dict(z=torch.randn(batch, n, n, 16), pair_mask=seq[:, :, None] * seq[:, None])
DYNAMIC = dict(z={0: "batch", 1: "n", 2: "n"}, pair_mask={0: "batch", 1: "n", 2: "n"})
TRUTH = dict(gated=2, sparse=2, notes="OpenFold triangle attention, starting and ending node: batch of rows (5 axes), two biases, channel gate before the head gate")
