"""What a model of the zoo is: a factory, its inputs, and what recognition must say about it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from moh_deploy.frontend.load.model import ModelInput

InputBuilder = Callable[..., tuple[ModelInput, ...]]
"""Builds the example inputs; every dynamic dimension is a keyword argument of that name."""


@dataclass(frozen=True)
class ExpectedLayer:
    """What recognition must say about one MoH layer, in the words of `LayerInfo`.

    Attributes:
        num_kv_heads: None where the attention is of a form that MoHAttention does not cover.
        top_k: Routed heads a token chooses; for a custom router, what its author would call k.
        num_shared_heads: Heads that every token uses; for a custom router, heads without a choice.
        replaced: The attention must become a MoHAttention node.
    """

    num_heads: int
    num_kv_heads: int | None
    top_k: int | None
    num_shared_heads: int | None
    router: str
    replaced: bool = True


@dataclass(frozen=True)
class Expected:
    """The MoH layers of a model, in the order in which it runs them."""

    layers: tuple[ExpectedLayer, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class ZooModel:
    """One animal.

    Attributes:
        build: Makes the model, with the same weights each time.
        inputs: Makes the example; `inputs(batch=3)` makes one of another size.
        notes: What is unusual about the way it is written.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: InputBuilder
    expected: Expected
    notes: str

    @property
    def dims(self) -> dict[str, int]:
        """Dynamic dimension name to its size in the example."""
        sizes: dict[str, int] = {}
        for each in self.inputs():
            for axis, expression in each.dims.items():
                if expression.isidentifier():
                    sizes[expression] = each.value.shape[axis]
        return sizes


def seeded(make: Callable[[], nn.Module], *, training: bool = False) -> Callable[[], nn.Module]:
    """Return a factory of the model with lively weights that do not change from call to call."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20241)
            module = make()
            _enliven(module)
        return module.train(training)

    return build


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal values that depend on the shape and the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_in(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    """Return a sequence [batch, seq, 32], both axes dynamic: what most of the zoo eats."""
    return (ModelInput("x", noise(batch, seq, 32), {0: "batch", 1: "seq"}),)


@torch.no_grad()
def _enliven(module: nn.Module) -> None:
    """Scale the weights so that routing differs between tokens and no softmax is flat."""
    for each in module.modules():
        for parameter in each.parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.ndim >= 2 else 1
            if isinstance(each, nn.Embedding):
                parameter.normal_()
            elif fan_in >= 8:
                parameter.normal_(std=1.5 / fan_in**0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
