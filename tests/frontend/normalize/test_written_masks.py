"""Numbers that are written where a bool mask is true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
MASK = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)) > 0


def written(write: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], Tensor]:
    def model(x: Tensor, mask: Tensor) -> Tensor:
        own = x * 2
        write(own, mask)
        return own.softmax(-1)

    return model


def infinity(own: Tensor, mask: Tensor) -> None:
    own[mask] = float("-inf")


def of_first_dimensions(own: Tensor, mask: Tensor) -> None:
    own[mask[..., 0]] = -1e9


def of_dimensions_behind_others(own: Tensor, mask: Tensor) -> None:
    own[:, :, mask[0, 0]] = 3


def a_computed_number(own: Tensor, mask: Tensor) -> None:
    own[mask] = own.min()


@pytest.mark.parametrize(
    "write", [infinity, of_first_dimensions, of_dimensions_behind_others, a_computed_number]
)
def test_a_number_at_a_mask_is_filled_in(write: Callable[[Tensor, Tensor], None]):
    mask = MASK.clone()
    mask[..., -1] = False
    program = normalize(plain_trace(written(write), X, mask))
    assert nodes(program, "index_put") == []
    torch.testing.assert_close(program.module()(X, mask), written(write)(X, mask))


def test_zero_at_a_mask_is_a_choice_of_the_rest():
    def zero(own: Tensor, mask: Tensor) -> None:
        own[mask] = 0.0

    program = normalize(plain_trace(written(zero), X, MASK))
    assert nodes(program, "index_put") == nodes(program, "masked_fill") == []
    torch.testing.assert_close(program.module()(X, MASK), written(zero)(X, MASK))


def at_places(own: Tensor, mask: Tensor) -> None:
    own[torch.tensor([1])] = 0.0


def at_a_place_and_a_mask(own: Tensor, mask: Tensor) -> None:
    own[torch.tensor([1]), mask[0, :, 0, 0]] = 0.0


def a_number_for_each_channel(own: Tensor, mask: Tensor) -> None:
    own[mask[..., 0]] = torch.arange(5.0)


@pytest.mark.parametrize("write", [at_places, at_a_place_and_a_mask, a_number_for_each_channel])
def test_other_writes_stay(write: Callable[[Tensor, Tensor], None]):
    mask = torch.ones_like(MASK)
    program = normalize(plain_trace(written(write), X, mask))
    assert len(nodes(program, "index_put")) == 1
    torch.testing.assert_close(program.module()(X, mask), written(write)(X, mask))
