"""Small models and checkpoint files that the loading tests share."""

import pickle
from pathlib import Path

import torch
from torch import nn

NET_SOURCE = """
import torch
from torch import nn

print("a factory module that prints")


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.drop(self.first(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def build(**kwargs):
    print("a factory that prints")
    return Net(**kwargs)


def build_tied():
    return Tied()


def build_number():
    return 3


def fail(size):
    raise ValueError(f"size {size} is odd")


def leave():
    raise SystemExit(4)


WIDTH = 4
"""


class Net(nn.Module):
    """The same network as in NET_SOURCE, for tests that hold it in memory."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.first(x)))


def write_net(directory: Path, name: str = "user_net") -> Path:
    """Write NET_SOURCE as a module of the user and return its code directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.py").write_text(NET_SOURCE)
    return directory


class Bomb:
    """Runs code when it is unpickled: leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.mark,))


def bomb_bytes(mark: Path) -> bytes:
    """Return a pickle that creates a file when it is loaded."""
    return pickle.dumps(Bomb(mark))
