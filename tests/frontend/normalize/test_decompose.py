from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


EINSUMS = {
    "gates_heads_and_projection": ("bsh,bhsd,chd->bsc", [(2, 5, 4), (2, 4, 5, 3), (6, 4, 3)]),
    "four_operands": ("ab,bc,cd,de->ae", [(2, 3), (3, 4), (4, 5), (5, 6)]),
    "letter_in_all": ("bi,bi,bi->b", [(2, 3), (2, 3), (2, 3)]),
    "outer": ("a,b,c->cab", [(2,), (3,), (4,)]),
    "spaces": ("ab , bc , cd -> ad", [(2, 3), (3, 4), (4, 5)]),
}


@sampled(2)
@pytest.mark.parametrize("name", EINSUMS)
def test_einsum_of_many_becomes_products_of_two(name: str):
    equation, shapes = EINSUMS[name]
    operands = [random(*shape) for shape in shapes]
    program = normalize(plain_trace(lambda *x: torch.einsum(equation, *x), *operands))
    assert [len(node.args[1]) for node in nodes(program, "einsum")] == [2] * (len(shapes) - 1)
    torch.testing.assert_close(program.module()(*operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize("equation", ["...ab,...bc,...cd->...ad", "ab,bc,cd"])
def test_einsum_that_does_not_say_all_letters_stays(equation: str):
    operands = [random(2, 2)] * 3
    program = normalize(plain_trace(lambda *x: torch.einsum(equation, *x), *operands))
    assert [len(node.args[1]) for node in nodes(program, "einsum")] == [3]
    torch.testing.assert_close(program.module()(*operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5}, {"beta": 2.0}, {"alpha": 3, "beta": 0.1}])
def test_baddbmm_is_written_out(factors: dict[str, float]):
    operands = [random(2, 3, 5), random(2, 3, 4), random(2, 4, 5)]
    program = normalize(plain_trace(lambda *x: torch.baddbmm(*x, **factors), *operands))
    assert nodes(program, "baddbmm") == []
    torch.testing.assert_close(program.module()(*operands), torch.baddbmm(*operands, **factors))


@pytest.mark.parametrize(
    ("base", "added"), [(torch.zeros_like, 0), (lambda y: y.new_zeros(3, 2, 4), 1), (torch.exp, 1)]
)
def test_addcmul_is_written_out(base: Callable[[Tensor], Tensor], added: int):
    def model(y: Tensor, g: Tensor) -> Tensor:
        return torch.addcmul(base(y), y, g, value=2) - 1

    y, g = random(2, 4), random(1, 4)
    program = normalize(plain_trace(model, y, g))
    assert nodes(program, "addcmul") == []
    assert len(nodes(program, "add")) == added
    torch.testing.assert_close(program.module()(y, g), model(y, g))


def test_baddbmm_with_beta_0_does_not_read_its_first_operand():
    def model(a: Tensor, b: Tensor) -> Tensor:
        return torch.baddbmm(torch.full((2, 3, 5), torch.nan), a, b, beta=0, alpha=0.5)

    a, b = random(2, 3, 4), random(2, 4, 5)
    program = normalize(plain_trace(model, a, b))
    assert nodes(program, "baddbmm") == nodes(program, "full") == []
    torch.testing.assert_close(program.module()(a, b), model(a, b))


def fill(keep: Tensor, pad: Tensor) -> Tensor:
    return keep.masked_fill(pad, False)


def write(keep: Tensor, pad: Tensor) -> Tensor:
    keep = keep.clone()
    keep[pad] = False
    return keep


@pytest.mark.parametrize("without", [fill, write])
def test_mask_of_what_is_kept_stays_one(without: Callable[[Tensor, Tensor], Tensor]):
    def model(x: Tensor, pad: Tensor) -> Tensor:
        return x.masked_fill(~without(torch.ones_like(pad).tril(), pad), -1)

    x, pad = random(3, 3), torch.tensor([[True, False, False]]).expand(3, 3)
    program = normalize(plain_trace(model, x, pad))
    assert len(nodes(program, "masked_fill")) == 1
    torch.testing.assert_close(program.module()(x, pad), model(x, pad))


def test_expand_as_reads_nothing_but_a_size():
    def model(g: Tensor, y: Tensor) -> Tensor:
        return g[..., None].expand_as(y.exp()) - 1

    g, y = random(4, 3), random(2, 4, 3, 5)
    program = normalize(plain_trace(model, g, y))
    assert nodes(program, "expand_as") == nodes(program, "exp") == []
    torch.testing.assert_close(program.module()(g, y), model(g, y))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_repetition_by_a_dynamic_size_is_written_out(dim: int):
    class Repeats(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.repeat_interleave(y.shape[0], dim=dim) - 1

    x, sizes = random(2, 4, 3), torch.export.Dim("sizes")
    program = torch.export.export(Repeats(), (x, random(5)), dynamic_shapes=(None, {0: sizes}))
    program = normalize(program)
    assert nodes(program, "repeat_interleave") == []
    y = random(7)
    torch.testing.assert_close(program.module()(x, y), Repeats()(x, y))


@pytest.mark.parametrize(("dims", "keepdim"), [([0], False), ([0], True), ([1, -1], False)])
def test_sum_of_an_einsum_is_an_einsum(dims: list[int], keepdim: bool):
    def model(y: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bshd,hdo->hbso", y, w).sum(dims, keepdim=keepdim)

    y, w = random(2, 3, 4, 5), random(4, 5, 6)
    program = normalize(plain_trace(model, y, w))
    assert nodes(program, "sum") == []
    torch.testing.assert_close(program.module()(y, w), model(y, w))


def test_einsum_that_is_read_elsewhere_keeps_its_sum():
    def model(y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        each = torch.einsum("bshd,hdo->hbso", y, w)
        return each, each.sum([0])

    program = normalize(plain_trace(model, random(2, 3, 4, 5), random(4, 5, 6)))
    assert len(nodes(program, "sum")) == 1
