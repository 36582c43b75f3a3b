from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

Y = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
G = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))

cat = torch.cat


def entries(y: Tensor, g: Tensor) -> list[Tensor]:
    return [y[:, :, i] * g[:, :, i, None] for i in range(4)]


JOINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slices": lambda y, g: cat(
        [y[:, :, :1] * g[:, :, :1, None], y[:, :, 1:] * g[:, :, 1:, None]], 2
    ),
    "factor_first": lambda y, g: cat(
        [g[..., :2, None] * y[:, :, :2], g[..., 2:, None] * y[:, :, 2:]], -2
    ),
    "untouched_part": lambda y, g: cat([y[:, :, :2], y[:, :, 2:] * g[:, :, :2, None]], 2),
    "one_factor_for_a_part": lambda y, g: cat(
        [y[:, :, :2] * g[:, :, :1, None], y[:, :, 2:] * g[:, :, 1:2, None]], 2
    ),
    "entries_stacked": lambda y, g: torch.stack(entries(y, g), 2),
    "entries_stacked_elsewhere": lambda y, g: torch.stack(entries(y, g), 1),
    "entries_side_by_side": lambda y, g: cat(entries(y, g), -1),
    "split": lambda y, g: cat(
        [
            part * gate
            for part, gate in zip(y.split([1, 3], 2), g[..., None].split([1, 3], 2), strict=True)
        ],
        2,
    ),
    "chunk": lambda y, g: cat(
        [part * gate[..., None] for part, gate in zip(y.chunk(2, 2), g.chunk(2, -1), strict=True)],
        2,
    ),
    "unbind": lambda y, g: torch.stack(
        [part * gate[..., None] for part, gate in zip(y.unbind(2), g.unbind(-1), strict=True)], 2
    ),
    "einsum": lambda y, g: cat(
        [
            torch.einsum("bshd,bsh->bshd", y[:, :, :3], g[..., :3]),
            torch.einsum("bshd,bsh->bshd", y[:, :, 3:], g[..., 3:]),
        ],
        2,
    ),
    "narrow": lambda y, g: cat(
        [y.narrow(2, i, 2) * g.narrow(2, i, 2)[..., None] for i in (0, 2)], 2
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", JOINED)
def test_products_of_slices_become_one_product(name: str):
    program = normalize(plain_trace(JOINED[name], Y, G))
    products = [*nodes(program, "mul"), *nodes(program, "einsum")]
    assert len(products) == 1
    torch.testing.assert_close(program.module()(Y, G), JOINED[name](Y, G))


UNLIKE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "out_of_order": lambda y, g: cat(
        [y[:, :, 1:] * g[:, :, 1:, None], y[:, :, :1] * g[:, :, :1, None]], 2
    ),
    "a_gap": lambda y, g: cat(
        [y[:, :, :1] * g[:, :, :1, None], y[:, :, 2:] * g[:, :, 2:, None]], 2
    ),
    "an_overlap": lambda y, g: cat(
        [y[:, :, :2] * g[:, :, :2, None], y[:, :, 1:] * g[:, :, 1:, None]], 2
    ),
    "not_all": lambda y, g: cat([y[:, :, :1] * g[:, :, :1, None], y[:, :, 1:3]], 2),
    "two_tensors": lambda y, g: cat(
        [y[:, :, :1] * g[:, :, :1, None], y.exp()[:, :, 1:] * g[:, :, 1:, None]], 2
    ),
    "another_dimension": lambda y, g: cat(
        [y[:, :, :2] * g[:, :, :2, None], y[:, :, 2:] * g[:, :, 2:, None]], 1
    ),
    "every_other": lambda y, g: cat(
        [y[:, :, ::2] * g[:, :, ::2, None], y[:, :, 1::2] * g[:, :, 1::2, None]], 2
    ),
    "sums": lambda y, g: cat([y[:, :, :1] + g[:, :, :1, None], y[:, :, 1:] + g[:, :, 1:, None]], 2),
    "no_factor": lambda y, g: cat([y[:, :, :1], y[:, :, 1:]], 2),
}


def test_slices_that_are_put_together_again_are_the_tensor():
    program = normalize(plain_trace(lambda y, g: UNLIKE["no_factor"](y, g) + 1, Y, G))
    assert nodes(program, "cat") == nodes(program, "slice") == []
    torch.testing.assert_close(program.module()(Y, G), Y + 1)


@sampled(4)
@pytest.mark.parametrize("name", UNLIKE)
def test_anything_else_keeps_its_meaning(name: str):
    program = plain_trace(UNLIKE[name], Y, G)
    count = len(nodes(program, "mul"))
    program = normalize(program)
    assert len(nodes(program, "mul")) == count
    torch.testing.assert_close(program.module()(Y, G), UNLIKE[name](Y, G))


REGROUPED: dict[str, Callable[[Tensor], Tensor]] = {
    "heads_into_the_batch": lambda y: cat(y.flatten(2).split(3, 2), 0),
    "heads_out_of_the_batch": lambda y: cat(y.flatten(0, 1).chunk(5, 0), -1),
    "entries_along_another_dimension": lambda y: torch.stack(y.unbind(2), 0),
    "entries_at_the_end": lambda y: torch.stack([y[:, :, i] for i in range(4)], -1),
    "entries_into_the_batch": lambda y: cat(y.unbind(2), 0),
}


@sampled(2)
@pytest.mark.parametrize("name", REGROUPED)
def test_slices_along_another_dimension_are_a_view(name: str):
    written = REGROUPED[name]
    program = normalize(plain_trace(lambda y: written(y) * 1, Y))
    joined = [*nodes(program, "cat"), *nodes(program, "stack")]
    assert joined == []
    torch.testing.assert_close(program.module()(Y), written(Y))


def test_unequal_slices_along_another_dimension_stay():
    def written(y: Tensor) -> Tensor:
        return cat([y[:, :2].flatten(1, 2), y[:, 2:4].flatten(1, 2), y[:, 4:].flatten(1, 2)], 1)

    def missing(y: Tensor) -> Tensor:
        return cat([y[:, :, :1], y[:, :, 2:3]], 0)

    for model in (written, missing):
        program = normalize(plain_trace(model, Y))
        assert len(nodes(program, "cat")) == 1
        torch.testing.assert_close(program.module()(Y), model(Y))
