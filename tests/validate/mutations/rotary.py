"""Decoders that take long prompts, with rotary positions in three ways of writing them."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, seeded
from tests.zoo.sdpa import pick_heads

VOCAB, WIDTH, HEADS, DEPTH, LONGEST = 200, 64, 2, 2, 8192
HALF = WIDTH // HEADS // 2


class OfPowers(nn.Module):
    """The frequencies are powers, and the angles are counted in each run."""

    def forward(self, x: Tensor) -> Tensor:
        frequencies = 10000.0 ** (-torch.arange(HALF) / HALF)
        angles = torch.arange(x.shape[2])[:, None] * frequencies
        return _turned(x, angles.cos(), angles.sin())


class OfATable(nn.Module):
    """Angles of the whole context are computed in each run, and cut to the prompt."""

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(0, 2 * HALF, 2) * (-math.log(10000) / (2 * HALF)))
        angles = torch.arange(LONGEST).float()[:, None] * frequencies
        return _turned(x, angles.cos()[: x.shape[2]], angles.sin()[: x.shape[2]])


class OfComplexNumbers(nn.Module):
    """Neighbours are a complex number, which is multiplied by one of a stored table."""

    def __init__(self) -> None:
        super().__init__()
        frequencies = 1.0 / 500000.0 ** (torch.arange(0, 2 * HALF, 2).float() / (2 * HALF))
        angles = torch.outer(torch.arange(LONGEST).float(), frequencies)
        self.register_buffer("table", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.table[: x.shape[2]]).flatten(-2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Layer(nn.Module):
    """Causal attention of two heads, of which each token uses one."""

    def __init__(self, rotate: nn.Module) -> None:
        super().__init__()
        self.rotate = rotate
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.router = nn.Linear(WIDTH, HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (m(h).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        gates = pick_heads(self.router(h), 1)
        return x + self.o((y.transpose(1, 2) * gates[..., None]).flatten(2))


class Decoder(nn.Module):
    """A small language model."""

    def __init__(self, rotate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer(rotate()) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def sharp(rotate: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory of a decoder whose softmaxes tell small angles apart."""

    def build() -> nn.Module:
        model = seeded(lambda: Decoder(rotate))()
        with torch.no_grad():
            for layer in model.layers:
                layer.q.weight.mul_(2)
        return model

    return build


def prompt_of(tokens: int) -> Tensor:
    """Return ids [1, tokens], the same in every call."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(VOCAB, (1, tokens), generator=generator)


def prompt_in(seq: int = 16) -> tuple[ModelInput, ...]:
    """Return a short prompt of one sequence."""
    return (ModelInput("ids", prompt_of(seq), {1: "seq"}),)


_LAYERS = Expected((ExpectedLayer(HEADS, HEADS, 1, 0, "top_k"),) * DEPTH)

ROTARY = (
    ZooModel("rotary_powers", sharp(OfPowers), prompt_in, _LAYERS, "10000 ** (-i / half)"),
    ZooModel("rotary_table", sharp(OfATable), prompt_in, _LAYERS, "exp, and a slice of a table"),
    ZooModel("rotary_complex", sharp(OfComplexNumbers), prompt_in, _LAYERS, "torch.polar"),
)
