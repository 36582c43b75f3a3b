"""Models that half precision is too short for, as a stranger would write them; torch only."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.small_moh import SmallMoH


class Block(nn.Module):
    """MoH attention and a perceptron without any norm."""

    def __init__(self, width, hidden=32):
        super().__init__()
        self.attn = SmallMoH(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks, and a norm at the end, so that what comes out is of size 1."""

    def __init__(self, width=16, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Outliers(Stack):
    """Between blocks 0 and 1, a channel of the residual stream carries a number of thousands."""

    def __init__(self):
        super().__init__(depth=2)

    def prepare(self):
        first, second = self.blocks
        attention = second.attn
        readers = (second.up, attention.qkv, attention.routed, attention.shared, attention.stage)
        for linear in readers:
            linear.weight.data[:, 3] = 0
        first.down.bias.data[3] = 6000.0
        second.down.bias.data[3] = -6000.0


class Turned(Stack):
    """What reads the input moves it, and computes nothing: tokens come before samples."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1))


class LargeLogits(nn.Module):
    """A pooling by softmax over logits in the thousands, of which the differences count."""

    def __init__(self, width=16):
        super().__init__()
        self.stack = Stack(width, depth=1)
        self.score = nn.Linear(width, 1)

    def prepare(self):
        self.score.bias.data.fill_(5000.0)

    def forward(self, x):
        x = self.stack(x)
        return (self.score(x).softmax(dim=1) * x).sum(dim=1)


def build(kind):
    """Return a model with weights that make its routing vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = kind()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.2)
    getattr(model, "prepare", lambda: None)()
    return model
