"""Point cloud with batched dense neighbours (Stratified / PCT-like scalar attention): q [B,N,H,1,d] against k [B,N,H,K,d]; gumbel-free straight hard gates by sign."""
import torch, torch.nn.functional as F
from torch import nn


def index_points(points, idx):
    B = points.shape[0]
    batch = torch.arange(B, device=points.device).view(B, 1, 1).expand_as(idx)
    return points[batch, idx]


class LocalAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h, self.d = heads, dim // heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.pos = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, heads))
        self.gate = nn.Linear(dim, heads)

    def forward(self, x, xyz, knn_idx):
        B, N, K = knn_idx.shape
        q = self.wq(x).view(B, N, 1, self.h, self.d).transpose(2, 3)
        k = index_points(self.wk(x), knn_idx).view(B, N, K, self.h, self.d).transpose(2, 3)
        v = index_points(self.wv(x), knn_idx).view(B, N, K, self.h, self.d).transpose(2, 3)
        rel = self.pos(xyz[:, :, None] - index_points(xyz, knn_idx)).permute(0, 1, 3, 2).unsqueeze(3)
        a = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / self.d**0.5 + rel, dim=-1)
        o = torch.matmul(a, v).squeeze(3)
        logit = self.gate(x)
        o = o * ((logit > 0) * logit.tanh()).unsqueeze(-1)
        return self.wo(o.reshape(B, N, -1))


class Net(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.fc = nn.Linear(3, dim)
        self.blocks = nn.ModuleList([LocalAttention(dim, heads) for _ in range(2)])
        self.bn = nn.BatchNorm1d(dim)
        self.cls = nn.Linear(dim, 6)

    def forward(self, xyz, knn_idx):
        x = F.relu(self.fc(xyz))
        for b in self.blocks:
            x = x + b(x, xyz, knn_idx)
        x = self.bn(x.transpose(1, 2))
        return self.cls(x.max(dim=2)[0])


def build():
    torch.manual_seed(17)
    m = Net()
    for b in m.blocks:
        nn.init.normal_(b.gate.weight, std=0.6)
    return m.eval()


SIZES = dict(batch=2, n=11, near=4)


def inputs(batch=2, n=11, near=4):
    xyz = torch.randn(batch, n, 3)
    return dict(xyz=xyz, knn_idx=torch.cdist(xyz, xyz).topk(near, largest=False).indices)


DYNAMIC = dict(xyz={0: "batch", 1: "n"}, knn_idx={0: "batch", 1: "n", 2: "near"})
TRUTH = dict(gated=2, sparse=2, notes="local attention, one query row for each point with its own keys; gates (logit > 0) * tanh")
