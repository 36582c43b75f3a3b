"""NOT exportable: early exit by confidence (.item()), with gated heads in each layer."""
import torch, torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.qkv, self.o, self.g, self.conf = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, h), nn.Linear(d, 3)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        g = self.g(x).softmax(-1)
        g = torch.where(g >= g.topk(2, -1).values[..., -1:], g, 0.0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2) * g[..., None]
        x = x + self.o(y.flatten(2))
        return x, self.conf(x.mean(1))


class Net(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.layers = nn.ModuleList([Layer(d, h) for _ in range(3)])

    def forward(self, x):
        for l in self.layers:
            x, logits = l(x)
            if logits.softmax(-1).max(-1).values.min().item() > 0.5:
                break
        return logits


def build():
    torch.manual_seed(34)
    m = Net()
    for l in m.layers:
        nn.init.normal_(l.g.weight, std=0.5)
        nn.init.normal_(l.conf.weight, std=0.6)
    return m.eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=3, sparse=3, notes="UNEXPORTABLE: control flow on data; expect a refusal with the line and what to do", refuse=True)
