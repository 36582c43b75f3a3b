"""Which tensors are known to be masks of 0 and 1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.cores.binary import is_binary
from tests.frontend.traced import plain_trace
from tests.nightly import sampled

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BUFFER = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
HALVES = torch.tensor([[0.0, 0.5, 1.0, 0.0]])
PLACES = torch.tensor([2, 0])

BINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "comparison": lambda x: x > 0,
    "cast": lambda x: (x > 0).float(),
    "numbers_of_a_cast": lambda x: (x > 0).to(torch.int64).half(),
    "complement": lambda x: 1.0 - (x > 0).float(),
    "buffer": lambda x: BUFFER.expand(3, 4)[:, 1:],
    "triangle": lambda x: torch.ones(x.shape[0], 4).tril(),
    "both": lambda x: (x > 0).float() * torch.ones_like(x).triu(1),
    "gathered": lambda x: (x > 0).float()[PLACES],
    "joined": lambda x: torch.cat([x > 0, torch.zeros(3, 1)], 1),
    "filled": lambda x: torch.full((3, 4), 1.0),
}

OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "input": lambda x: x.view(4, 3),
    "twice": lambda x: (x > 0).float() * 2,
    "twice_the_complement": lambda x: 2 - (x > 0).float(),
    "sum": lambda x: (x > 0).float() + (x < 1).float(),
    "buffer_of_halves": lambda x: HALVES.expand(3, 4)[:, 1:],
    "product_with_an_input": lambda x: (x > 0).float() * x,
    "integers": lambda x: x.to(torch.int64),
    "filled_with_two": lambda x: torch.full((3, 4), 2.0),
    "sigmoid": lambda x: x.sigmoid(),
}


def decided(model: Callable[[Tensor], Tensor]) -> bool:
    program = plain_trace(model, X)
    (result,) = program.graph.find_nodes(op="output")
    (node,) = result.args[0]
    assert isinstance(node, Node)
    return is_binary(node, Constants(program))


@sampled(4)
@pytest.mark.parametrize("name", BINARY)
def test_masks_are_known_to_be_0_and_1(name: str):
    assert decided(BINARY[name])
    assert set(BINARY[name](X).float().unique().tolist()) <= {0.0, 1.0}


@sampled(4)
@pytest.mark.parametrize("name", OTHER)
def test_anything_else_is_not(name: str):
    assert not decided(OTHER[name])
