from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


EINSUMS = {
    "gates_heads_and_projection": ("bsh,bhsd,chd->bsc", [(2, 5, 4), (2, 4, 5, 3), (6, 4, 3)]),
    "four_operands": ("ab,bc,cd,de->ae", [(2, 3), (3, 4), (4, 5), (5, 6)]),
    "letter_in_all": ("bi,bi,bi->b", [(2, 3), (2, 3), (2, 3)]),
    "outer": ("a,b,c->cab", [(2,), (3,), (4,)]),
    "spaces": ("ab , bc , cd -> ad", [(2, 3), (3, 4), (4, 5)]),
}


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


def test_what_nobody_reads_is_gone():
    program = normalize(plain_trace(lambda x: (x.exp(), x + 1)[1], random(2)))
    assert nodes(program, "exp") == []


def test_dropout_that_drops_nothing_is_gone():
    def two(x: Tensor) -> Tensor:
        return F.dropout(F.dropout2d(x, 0.5, training=False) + 1, 0.5, training=False) * 2

    x = random(2, 3, 4, 4)
    program = normalize(plain_trace(two, x))
    assert nodes(program, "dropout") == nodes(program, "feature_dropout") == []
    torch.testing.assert_close(program.module()(x), (x + 1) * 2)


def test_dropout_that_drops_stays():
    program = normalize(plain_trace(lambda x: F.dropout(x, 0.5, training=True) * 2, random(2, 3)))
    assert len(nodes(program, "dropout")) == 1


def test_dropout_that_is_the_output_keeps_its_name():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: F.dropout(x * 2, 0.5, training=False), x))
    torch.testing.assert_close(program.module()(x), x * 2)


def test_transposing_back_is_gone():
    def model(x):
        return x.transpose(1, 2).permute(0, 2, 1, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert nodes(program, "permute") + nodes(program, "transpose") == []
    torch.testing.assert_close(program.module()(random(2, 3, 4, 5)), model(random(2, 3, 4, 5)))


def test_transposing_something_else_stays():
    def model(x):
        return x.transpose(1, 2).transpose(2, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert len(nodes(program, "transpose")) == 2


def test_cast_to_what_is_given_is_left_out():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float() * x.double(), x))
    assert [node.args[1] for node in nodes(program, "to")] == [torch.float64]
    assert not nodes(program, "_assert_tensor_metadata")
    torch.testing.assert_close(program.module()(x), x * x.double())


def test_cast_that_is_an_output_stays():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float(), x))
    torch.testing.assert_close(program.module()(x), x)
