import numpy as np
import torch
from torch import nn


class HashAttn(nn.Module):
    """Heads by a hash of token ids, computed in numpy."""
    def __init__(self, d, h):
        super().__init__()
        self.h, self.qkv, self.o = h, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, ids):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        hashed = (ids.cpu().numpy().astype(np.uint64) * np.uint64(2654435761)) % np.uint64(self.h)
        gate = torch.from_numpy(np.eye(self.h, dtype=np.float32)[hashed.astype(np.int64)])
        return self.o((a * gate.permute(0, 2, 1)[..., None]).transpose(1, 2).reshape(b, n, d))


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.a = nn.Embedding(50, d), HashAttn(d, 4)

    def forward(self, ids):
        x = self.e(ids)
        return x + self.a(x, ids)


def build():
    torch.manual_seed(30)
    return M().eval()

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8): return dict(ids=torch.randint(0, 50, (batch, n)))
DYNAMIC = dict(ids={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=1, notes="UNEXPORTABLE as written: routing in numpy; a clear refusal with line and remedy is expected (never constants of the example baked in)")
