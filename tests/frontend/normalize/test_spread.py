"""Matrices of 0 and 1 that repeat entries, and others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
EACH = torch.eye(4).repeat_interleave(3, 1)  # [4, 12]

SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ EACH,
    "mm": lambda x: x[0].mm(EACH),
    "linear": lambda x: F.linear(x, EACH.mT.contiguous()),
    "made_as_the_model_runs": lambda x: x @ torch.eye(4).repeat_interleave(2, 1),
    "kron": lambda x: x @ torch.kron(torch.eye(4), torch.ones(1, 5)),
}


@sampled(2)
@pytest.mark.parametrize("name", SPREAD)
def test_product_that_repeats_is_a_repetition(name: str):
    program = normalize(plain_trace(SPREAD[name], X))
    assert len(nodes(program, "repeat_interleave")) >= 1
    assert nodes(program, "matmul") + nodes(program, "mm") + nodes(program, "linear") == []
    assert torch.equal(program.module()(X), SPREAD[name](X))


OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "repeated_as_a_whole": lambda x: x @ torch.eye(4).repeat(1, 3),
    "identity": lambda x: x @ torch.eye(4),
    "twice_as_large": lambda x: x @ (EACH * 2),
    "one_of_them_zero": lambda x: x @ (EACH * torch.tensor([1.0] * 11 + [0.0])),
    "entries_in_another_order": lambda x: x @ EACH.flip(0),
    "sums": lambda x: F.linear(x.repeat(1, 1, 3), EACH),
    "with_a_bias": lambda x: F.linear(x, EACH.mT.contiguous(), torch.ones(12)),
    "of_the_input": lambda x: x[0] @ (x[0].mT @ x[0]).sign().repeat(1, 2),
    "a_constant": lambda x: (torch.ones(2, 4) @ EACH).sum() + x,
}


@sampled(4)
@pytest.mark.parametrize("name", OTHER)
def test_anything_else_stays_a_product(name: str):
    program = plain_trace(OTHER[name], X)
    products = ("matmul", "mm", "linear")
    count = sum(len(nodes(program, product)) for product in products)
    program = normalize(program)
    assert sum(len(nodes(program, product)) for product in products) == count
    torch.testing.assert_close(program.module()(X), OTHER[name](X))
