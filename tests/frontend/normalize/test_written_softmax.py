"""Softmax that is written out, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

X = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
WIDE = X.double() * 30


def shifted(x: Tensor, dim: int = -1) -> Tensor:
    return torch.exp(x - x.amax(dim, keepdim=True))


def over(e: Tensor, dim: int = -1) -> Tensor:
    return e / e.sum(dim, keepdim=True)


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "largest_subtracted": lambda x: over(shifted(x)),
    "nothing_subtracted": lambda x: over(x.exp()),
    "along_another_dimension": lambda x: over(shifted(x, 1), 1),
    "with_max": lambda x: over(torch.exp(x - x.max(-1, keepdim=True).values.detach())),
    "dimensions_put_back": lambda x: (
        (e := torch.exp(x - x.max(1)[0].unsqueeze(1))) / e.sum(1)[:, None]
    ),
    "sum_expanded": lambda x: (e := x.exp()) / e.sum(-1, True).expand_as(e),
    "another_maximum": lambda x: over(torch.exp(x - x.amax(1, keepdim=True))),
    "a_number_subtracted": lambda x: over(torch.exp(x - 3)),
}


@sampled(4)
@pytest.mark.parametrize("name", WRITTEN)
def test_softmax_that_is_written_out_becomes_one(name: str):
    program = normalize(plain_trace(WRITTEN[name], X))
    assert len(nodes(program, "softmax")) == 1
    assert nodes(program, "div") == nodes(program, "exp") == []
    torch.testing.assert_close(program.module()(X), WRITTEN[name](X))


def test_largest_value_is_not_subtracted_twice():
    program = normalize(plain_trace(WRITTEN["largest_subtracted"], X))
    assert nodes(program, "sub") == nodes(program, "amax") == []


def test_large_scores_stay_finite():
    program = normalize(plain_trace(WRITTEN["along_another_dimension"], WIDE))
    torch.testing.assert_close(program.module()(WIDE), WIDE.softmax(1))


OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "plus_one": lambda x: (e := x.exp()) / (e.sum(-1, keepdim=True) + 1),
    "of_another_sum": lambda x: x.exp() / x.cos().exp().sum(-1, keepdim=True),
    "sum_along_the_other_dimension": lambda x: (e := x.exp()) / e.sum(-1)[:, None],
    "sum_of_everything": lambda x: (e := x.exp()) / e.sum((1, 2), keepdim=True),
    "mean": lambda x: (e := x.exp()) / e.mean(-1, keepdim=True),
    "power_of_two": lambda x: (e := x.exp2()) / e.sum(-1, keepdim=True),
    "the_other_way_round": lambda x: (e := x.exp()).sum(-1, keepdim=True) / e,
    "rounded_down": lambda x: torch.div(
        e := x.exp(), e.sum(-1, keepdim=True), rounding_mode="floor"
    ),
    "summed_in_float64": lambda x: (e := x.exp()) / e.sum(-1, keepdim=True, dtype=torch.float64),
}


@sampled(4)
@pytest.mark.parametrize("name", OTHER)
def test_anything_else_keeps_its_meaning(name: str):
    program = normalize(plain_trace(OTHER[name], X))
    assert nodes(program, "softmax") == []
    torch.testing.assert_close(program.module()(X), OTHER[name](X))
