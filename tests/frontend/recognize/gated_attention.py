"""Attention, gates and mixers of tokens, for tests of what recognition says of them."""

import inspect
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import Recognized, survey
from tests.frontend.traced import traced
from tests.zoo.model import tokens_in


class Attention(nn.Module):
    """Four heads of eight [B, H, S, D]; other forms have a `forward` of their own, whose lines are
    what is told: of a function that it calls torch keeps no line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return (q @ k.mT).softmax(-1) @ v


class FlippedWeights(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q @ k.mT).softmax(-1)
        return weights.flip(-1) @ v


class Gated(nn.Module):
    def __init__(self, attend: nn.Module | None = None) -> None:
        super().__init__()
        self.attend = attend or Attention()
        self.router, self.proj = nn.Linear(32, 4), nn.Linear(32, 32)

    def gates(self, x: Tensor) -> Tensor:
        value, which = self.router(x).softmax(-1).topk(2, -1)
        return torch.zeros(*x.shape[:2], 4).scatter(-1, which, value)  # [B, S, H]

    def forward(self, x: Tensor) -> Tensor:
        gated = self.attend(x).transpose(1, 2) * self.gates(x)[..., None]
        return x + self.proj(gated.flatten(2))


class NoGates(Gated):
    def merged(self, x: Tensor) -> Tensor:
        return self.attend(x).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.merged(x))


class Mixer(nn.Module):
    """Four heads [B, S, H, D] that are made in another way than by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.proj = nn.Linear(32, 4), nn.Linear(32, 32)
        self.conv, self.three = nn.Conv1d(32, 32, 3, padding=1), nn.Linear(32, 96)

    def gates(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        return p * F.one_hot(p.topk(2, -1).indices, 4).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mixed(x).unflatten(-1, (4, 8))
        return x + self.proj((heads * self.gates(x)[..., None]).flatten(2))

    def mixed(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.mT, 3, 1, 1).mT


def found_in(model: nn.Module, *inputs: ModelInput) -> Recognized:
    return survey(traced(model.eval(), inputs or tokens_in()))


def line_of(model: type[nn.Module], text: str) -> str:
    """The place of a line of a model's `forward`, as it is told."""
    lines, first = inspect.getsourcelines(model.forward)
    offset = next(i for i, line in enumerate(lines) if text in line)
    return f"recognize/{Path(inspect.getfile(model)).name}:{first + offset}"
