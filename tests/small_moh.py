"""The smallest Mixture-of-Head layer with everything in it; it imports torch only, as user code."""

import torch
import torch.nn.functional as F
from torch import nn


class SmallMoH(nn.Module):
    """Two-stage routing: two shared heads, the better one of two routed ones."""

    def __init__(self, width=8):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.routed, self.shared, self.stage = (nn.Linear(width, 2, bias=False) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(width, width)

    def gates(self, x):
        p = self.routed(x).softmax(-1)
        p = p * F.one_hot(p.topk(1, dim=-1).indices, 2).sum(-2)
        p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)
        first, second = (self.stage(x).softmax(-1) * 2).chunk(2, dim=-1)
        return torch.cat([self.shared(x).softmax(-1) * 2 * first, p * second], dim=-1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(self.drop((y * self.gates(x).unsqueeze(-1)).flatten(2)))


def build():
    """Return the layer with weights that make its routing vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layer = SmallMoH()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return layer
