"""Tensors that are filled part by part."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace, traced
from tests.nightly import sampled

# Three parts [B, S, D].
PARTS = tuple(
    torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
)
Model = Callable[..., Tensor]


def slices(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    for i, part in enumerate(parts):
        out[..., 4 * i : 4 * i + 4] = part * 2
    return out


def slices_in_another_order(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = a.new_zeros(2, 15, 4)
    out[:, 10:] = c
    out[:, :5] = a
    out[:, 5:-5] = b
    return out


def added_slices(*parts: Tensor) -> Tensor:
    out = torch.full((2, 5, 12), 0.0)
    for i, part in enumerate(parts):
        out[..., 4 * i : 4 * i + 4] += part
    return out


def entries(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 3, 4)
    for i, part in enumerate(parts):
        out[:, :, i] = part
    return out


def indices(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    for i, part in enumerate(parts):
        out = out.index_add(-1, torch.arange(4 * i, 4 * i + 4), part)
    return out


def all_indices(*parts: Tensor) -> Tensor:
    out = torch.zeros_like(parts[0])
    for part in parts:
        out = out.index_add(1, torch.arange(5), part)
    return out


def one_index(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 1, 4)
    return out.index_add(1, torch.zeros(5, dtype=torch.int64), parts[0]).squeeze(1) + 1


def writes(model: Model, *parts: Tensor) -> int:
    """The writes that are left; results must be what they were."""
    program = normalize(plain_trace(lambda *x: model(*x) * 1, *parts))
    torch.testing.assert_close(program.module()(*parts), model(*parts))
    names = ("slice_scatter", "select_scatter", "index_add")
    return sum(len(nodes(program, name)) for name in names)


@sampled(4)
@pytest.mark.parametrize(
    "model",
    [
        slices,
        slices_in_another_order,
        added_slices,
        entries,
        indices,
        all_indices,
        one_index,
    ],
)
def test_tensor_of_parts_is_their_concatenation(model: Model):
    assert writes(model, *PARTS) == 0


def a_part_is_missing(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    out[..., :4] = a
    out[..., 8:] = c
    return out


def parts_overlap(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 10)
    out[..., :4] = a
    out[..., 3:7] += b
    out[..., 6:] = c
    return out


def not_zero_at_first(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.cat([a, b], -1).exp()
    out = out.index_add(-1, torch.arange(4), b)
    return out.index_add(-1, torch.arange(4, 8), c)


def in_another_order(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 8).index_add(-1, torch.arange(4, 8), a)
    return out.index_add(-1, torch.tensor([3, 2, 1, 0]), b)


@sampled(2)
@pytest.mark.parametrize(
    ("model", "left"),
    [(a_part_is_missing, 2), (parts_overlap, 3), (not_zero_at_first, 2), (in_another_order, 2)],
)
def test_other_writes_stay(model: Model, left: int):
    assert writes(model, *PARTS) == left


# Products that are written back into slices become products of the whole.


Y = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
G = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))

WrittenSlicesModel = Callable[[Tensor, Tensor], Tensor]


def written(write: Callable[[Tensor, Tensor], None]) -> WrittenSlicesModel:
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


# Numbers that are written where a bool mask is true.


X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
MASK = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)) > 0


def masked(write: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], Tensor]:
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
    program = normalize(plain_trace(masked(write), X, mask))
    assert nodes(program, "index_put") == []
    torch.testing.assert_close(program.module()(X, mask), masked(write)(X, mask))


def test_zero_at_a_mask_is_a_choice_of_the_rest():
    def zero(own: Tensor, mask: Tensor) -> None:
        own[mask] = 0.0

    program = normalize(plain_trace(masked(zero), X, MASK))
    assert nodes(program, "index_put") == nodes(program, "masked_fill") == []
    torch.testing.assert_close(program.module()(X, MASK), masked(zero)(X, MASK))


def at_places(own: Tensor, mask: Tensor) -> None:
    own[torch.tensor([1])] = 0.0


def at_a_place_and_a_mask(own: Tensor, mask: Tensor) -> None:
    own[torch.tensor([1]), mask[0, :, 0, 0]] = 0.0


def a_number_for_each_channel(own: Tensor, mask: Tensor) -> None:
    own[mask[..., 0]] = torch.arange(5.0)


@pytest.mark.parametrize("write", [at_places, at_a_place_and_a_mask, a_number_for_each_channel])
def test_other_writes_by_index_stay(write: Callable[[Tensor, Tensor], None]):
    mask = torch.ones_like(MASK)
    program = normalize(plain_trace(masked(write), X, mask))
    assert len(nodes(program, "index_put")) == 1
    torch.testing.assert_close(program.module()(X, mask), masked(write)(X, mask))
