"""Point Transformer V2: grouped vector attention (weights by an MLP of k - q + position, softmax over neighbours, one weight a group); gates for the groups."""
import torch, torch.nn.functional as F
from torch import nn


def grouping(idx, feat):
    b, n, k = idx.shape
    return torch.gather(feat.unsqueeze(1).expand(-1, n, -1, -1), 2, idx.unsqueeze(-1).expand(-1, -1, -1, feat.shape[-1]))


class GroupedVectorAttention(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.groups, self.c = groups, c
        self.linear_q = nn.Sequential(nn.Linear(c, c), nn.LayerNorm(c), nn.ReLU())
        self.linear_k = nn.Sequential(nn.Linear(c, c), nn.LayerNorm(c), nn.ReLU())
        self.linear_v = nn.Linear(c, c)
        self.linear_p_bias = nn.Sequential(nn.Linear(3, c), nn.LayerNorm(c), nn.ReLU(), nn.Linear(c, c))
        self.weight_encoding = nn.Sequential(nn.Linear(c, groups), nn.LayerNorm(groups), nn.ReLU(), nn.Linear(groups, groups))
        self.group_gate = nn.Linear(c, groups)

    def forward(self, feat, coord, idx):
        query, key, value = self.linear_q(feat), self.linear_k(feat), self.linear_v(feat)
        key, value = grouping(idx, key), grouping(idx, value)
        pos = grouping(idx, coord) - coord.unsqueeze(2)
        peb = self.linear_p_bias(pos)
        relation = key - query.unsqueeze(2) + peb
        value = value + peb
        weight = F.softmax(self.weight_encoding(relation), dim=2)
        b, n, s, _ = value.shape
        value = value.reshape(b, n, s, self.groups, -1)
        out = torch.einsum("bnsgi,bnsg->bngi", value, weight)
        p = self.group_gate(feat).softmax(-1)
        w, i = p.topk(2, dim=-1)
        out = out * torch.zeros_like(p).scatter(-1, i, w).unsqueeze(-1)
        return out.flatten(2)


class PTv2(nn.Module):
    def __init__(self, c=24, groups=4, k=4):
        super().__init__()
        self.k = k
        self.embed = nn.Linear(6, c)
        self.attn, self.fc = GroupedVectorAttention(c, groups), nn.Linear(c, c)
        self.head = nn.Linear(c, 5)

    def forward(self, coord, feat):
        idx = torch.cdist(coord, coord).topk(self.k, dim=-1, largest=False).indices
        x = self.embed(torch.cat([coord, feat], -1))
        x = F.relu(x + self.fc(self.attn(x, coord, idx)))
        return self.head(x)


def build():
    torch.manual_seed(15)
    m = PTv2()
    nn.init.normal_(m.attn.group_gate.weight, std=0.7)
    return m.eval()


SIZES = dict(batch=2, n=12)


def inputs(batch=2, n=12):
    return dict(coord=torch.randn(batch, n, 3), feat=torch.randn(batch, n, 3))


DYNAMIC = {k: {0: "batch", 1: "n"} for k in ("coord", "feat")}
TRUTH = dict(gated=1, sparse=0, notes="vector attention is no softmax(qk)v: cannot be replaced as documented; the gated layer should be named")
