"""Attention as usual, run under something or for less than a batch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise
from tests.zoo.unusual import C, D, H, Parts


class Gated(Parts):
    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class OutOfAutocast(Gated):
    """All of it, activation checkpoint included, is kept out of autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return checkpoint(super().forward, x.float(), use_reentrant=False)


class OneSequence(Parts):
    """Batch 1 only: the batch is squeezed away, and made up for the attention alone."""

    def forward(self, x):
        x = x.squeeze(0)
        q, k, v = (m(x).view(1, -1, H, D).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)  # [S, H, D]
        return self.o((y * self.gates(x)[..., None]).flatten(1)).unsqueeze(0)


def one_sequence_in(seq=7):
    return (ModelInput("x", noise(1, seq, C), {1: "seq"}),)


class CountsItsLoad(Gated):
    """How often heads are chosen is kept in a buffer, at every call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("load", torch.zeros(H))

    def gates(self, x, k=2):
        g = super().gates(x, k)
        self.load.lerp_((g > 0).float().flatten(0, -2).mean(0), 0.1)
        return g


class TwiceOnTheSame(nn.Module):
    """Logits and an embedding, for each of which the layer is run: on the same tokens."""

    def __init__(self):
        super().__init__()
        self.attn, self.head = Gated(), nn.Linear(C, 5)

    def encode(self, x):
        return x * torch.tensor(2.0) + self.attn(x)

    def forward(self, x):
        return {"logits": self.head(self.encode(x)), "embedding": self.encode(x)}
