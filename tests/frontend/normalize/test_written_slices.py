"""Products that are written back into slices become products of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace, traced
from tests.nightly import sampled

Y = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
G = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))

Model = Callable[[Tensor, Tensor], Tensor]


def written(write: Callable[[Tensor, Tensor], None]) -> Model:
    """A model that writes into the transposed view of a tensor of its own."""

    def model(y: Tensor, g: Tensor) -> Tensor:
        own = y.exp().transpose(1, 2)  # [B, H, S, D]
        write(own, g.mT[..., None])
        return own.transpose(1, 2).flatten(2) * 1

    return model


def last_ones(y: Tensor, g: Tensor) -> None:
    y[:, 2:] *= g[:, 2:]


def first_ones(y: Tensor, g: Tensor) -> None:
    y[:, :1] *= g[:, :1]


def from_the_end(y: Tensor, g: Tensor) -> None:
    y[:, -2:] *= g[:, :1]


def multiplied_in_place(y: Tensor, g: Tensor) -> None:
    y.narrow(1, 1, 2).mul_(g[:, 1:3])


def one_after_the_other(y: Tensor, g: Tensor) -> None:
    y[:, :2] *= g[:, :2]
    y[:, 2:] *= g[:, 2:]


@sampled(3)
@pytest.mark.parametrize(
    ("write", "count"),
    [
        (last_ones, 1),
        (first_ones, 1),
        (from_the_end, 1),
        (multiplied_in_place, 1),
        (one_after_the_other, 2),
    ],
)
def test_products_that_are_written_back_are_products(
    write: Callable[[Tensor, Tensor], None], count: int
):
    model = written(write)
    program = normalize(plain_trace(model, Y, G))
    assert nodes(program, "slice_scatter") == nodes(program, "copy") == []
    assert len(nodes(program, "mul")) == count + 1  # the one behind
    torch.testing.assert_close(program.module()(Y, G), model(Y, G))


def test_product_that_was_written_by_way_of_the_first_axis_is_one():
    def model(y: Tensor, g: Tensor) -> Tensor:
        order = (2, 1, 0, 3)
        product = y[:, :, 1:3] * g[:, :, 1:3, None]
        moved = torch.slice_scatter(y.permute(order), product.permute(order), 0, 1, 3)
        return moved.permute(order) * 1

    program = normalize(plain_trace(model, Y, G))
    assert nodes(program, "slice_scatter") == []
    torch.testing.assert_close(program.module()(Y, G), model(Y, G))


def test_write_of_what_stood_there_is_none():
    def model(y: Tensor, g: Tensor) -> Tensor:
        own = y.exp()
        return torch.slice_scatter(own, own[:, :, 1:], 2, 1, 4) * 1

    program = normalize(plain_trace(model, Y, G))
    assert nodes(program, "slice_scatter") == []
    torch.testing.assert_close(program.module()(Y, G), model(Y, G))


def a_sum(y: Tensor, g: Tensor) -> None:
    y[:, 2:] += g[:, 2:]


def another_value(y: Tensor, g: Tensor) -> None:
    y[:, 2:] = g[:, 2:]


def a_product_of_others(y: Tensor, g: Tensor) -> None:
    y[:, 2:] = y[:, :2] * g[:, 2:]


def from_elsewhere(y: Tensor, g: Tensor) -> None:
    y[:, 2:] = y[:, 1:3].clone()


def every_other(y: Tensor, g: Tensor) -> None:
    y[:, ::2] *= g[:, ::2]


@sampled(3)
@pytest.mark.parametrize(
    "write", [a_sum, another_value, a_product_of_others, from_elsewhere, every_other]
)
def test_other_writes_keep_their_meaning(write: Callable[[Tensor, Tensor], None]):
    model = written(write)
    program = normalize(plain_trace(model, Y, G))
    assert nodes(program, "slice_scatter") != []
    torch.testing.assert_close(program.module()(Y, G), model(Y, G))


@pytest.mark.parametrize(("start", "step", "left"), [(0, 1, 0), (2, 1, 1), (0, 2, 1)])
def test_product_is_one_only_where_it_came_from(start: int, step: int, left: int):
    def model(y: Tensor, g: Tensor) -> Tensor:
        product = y[:, :, :2] * g[:, :, :2, None]
        return torch.slice_scatter(y, product, 2, start, start + 2 * step, step) * 1

    program = normalize(plain_trace(model, Y, G))
    assert len(nodes(program, "slice_scatter")) == left
    torch.testing.assert_close(program.module()(Y, G), model(Y, G))


class WrittenIntoABuffer(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        buffer = x.new_zeros(x.shape[0], 128, x.shape[2])
        buffer[:, : x.shape[1]] = x
        return buffer * 2


def test_write_of_a_dynamic_length_stays():
    x = torch.ones(2, 5, 4)
    program = traced(WrittenIntoABuffer(), [ModelInput("x", x, {1: "seq"})])
    assert len(nodes(program, "slice_scatter")) == 1
    longer = torch.ones(2, 7, 4)
    torch.testing.assert_close(program.module()(longer), WrittenIntoABuffer()(longer))
