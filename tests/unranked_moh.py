"""Mixture-of-Head layers whose routers rank nothing: a head is open where its gate is above 0. It
imports torch only, as user code.
"""

import torch
import torch.nn.functional as F
from torch import nn


def sparsemax(z):
    """Project onto the simplex (Martins and Astudillo, arXiv 1602.02068, algorithm 1)."""
    largest = z.sort(-1, descending=True).values
    above = largest.cumsum(-1) - 1
    ranks = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    support = (largest * ranks > above).sum(-1, keepdim=True)
    return F.relu(z - above.gather(-1, support - 1) / support)


class Layer(nn.Module):
    def __init__(self, width, heads, gate):
        super().__init__()
        self.heads, self.gate = heads, gate
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, heads)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        x = self.norm(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out((y * self.gate(3 * self.router(x)).unsqueeze(-1)).flatten(2))


class Model(nn.Module):
    def __init__(self, gate, width=96, heads=6, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, gate) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


def build(gate):
    """Return three layers with weights that make their routing vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(gate).eval()
