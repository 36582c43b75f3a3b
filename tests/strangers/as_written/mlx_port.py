import math, torch
from torch import nn


class Attention(nn.Module):
    """Port of an mlx_lm attention: mx.array idioms in torch; shared heads and routed heads, two-stage."""
    def __init__(self, dims, num_heads, shared, top_k):
        super().__init__()
        self.num_heads, self.shared, self.top_k = num_heads, shared, top_k
        self.scale = (dims // num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dims, dims, bias=False) for _ in range(4))
        self.wg = nn.Linear(dims, num_heads - shared, bias=False)
        self.wg_shared = nn.Linear(dims, shared, bias=False)
        self.wg_stage = nn.Linear(dims, 2, bias=False)

    def gates(self, x):
        scores = torch.softmax(self.wg(x), -1)
        inds = torch.argsort(-scores, dim=-1)[..., : self.top_k]          # mx.argpartition(-gates, kth=k-1)[..., :k]
        vals = torch.take_along_dim(scores, inds, dim=-1)
        vals = vals / vals.sum(-1, keepdim=True) * self.top_k
        routed = torch.zeros_like(scores)
        routed = torch.scatter(routed, -1, inds, vals)                      # mx.put_along_axis
        sh = torch.softmax(self.wg_shared(x), -1) * self.shared
        a = torch.softmax(self.wg_stage(x), -1) * 2
        return torch.cat([sh * a[..., :1], routed * a[..., 1:]], -1)

    def forward(self, x, mask=None):
        B, L, D = x.shape
        queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        queries = queries.reshape(B, L, self.num_heads, -1).permute(0, 2, 1, 3)
        keys = keys.reshape(B, L, self.num_heads, -1).permute(0, 2, 3, 1)
        values = values.reshape(B, L, self.num_heads, -1).permute(0, 2, 1, 3)
        scores = (queries * self.scale) @ keys
        if mask is not None:
            scores = scores + mask
        scores = torch.softmax(scores.float(), -1).to(scores.dtype)
        out = scores @ values
        out = out * self.gates(x).permute(0, 2, 1)[..., None]
        return self.o_proj(out.permute(0, 2, 1, 3).reshape(B, L, -1))

    @staticmethod
    def create_additive_causal_mask(N):
        idx = torch.arange(N)
        return (idx[:, None] < idx[None]).float() * -1e9


class Block(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.ln1, self.ln2, self.attention = nn.RMSNorm(dims), nn.RMSNorm(dims), Attention(dims, 8, 2, 3)
        self.fc1, self.fc2 = nn.Linear(dims, 2 * dims), nn.Linear(2 * dims, dims)

    def forward(self, x, mask):
        x = x + self.attention(self.ln1(x), mask)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


class LM(nn.Module):
    def __init__(self, dims=64):
        super().__init__()
        self.embedding, self.transformer, self.out_proj = nn.Embedding(64, dims), nn.ModuleList([Block(dims) for _ in range(2)]), nn.Linear(dims, 64)

    def forward(self, x):
        mask = Attention.create_additive_causal_mask(x.shape[1])
        x = self.embedding(x)
        for l in self.transformer: x = l(x, mask)
        return self.out_proj(x)


def build():
    torch.manual_seed(6)
    m = LM().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if ".wg" in n: p.mul_(6)
            if "embedding" in n: p.mul_(1.0)
    return m

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8): return dict(x=torch.randint(0, 64, (batch, n)))
DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="MLX port: argsort of negated scores instead of topk, keys transposed at once, two-stage with shared heads, -1e9 mask by product")
