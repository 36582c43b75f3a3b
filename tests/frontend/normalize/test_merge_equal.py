from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.normalize.fold import merge_equal
from tests.frontend.traced import nodes, plain_trace

X = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))


def merged(model: nn.Module):
    """The program of a model, which computes what the model does."""
    program = plain_trace(model, X)
    merge_equal(program)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    torch.testing.assert_close(program.module()(X), model(X))
    return program


class Attends(nn.Module):
    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.times = times
        self.project = nn.Linear(8, 8)

    def attend(self, x: Tensor) -> Tensor:
        q = self.project(x)
        # A constant of its own in each run.
        return F.scaled_dot_product_attention(q, x, x) * torch.tensor([0.5, float("nan")])[0]

    def forward(self, x: Tensor) -> Tensor:
        return sum(index * self.attend(x) for index in range(1, self.times + 1))


def test_layer_that_runs_twice_on_the_same_runs_once():
    program = merged(Attends())
    for name in ("linear", "scaled_dot_product_attention"):
        assert len(nodes(program, name)) == 1


def test_layer_that_runs_on_something_else_runs_again():
    class Recurrent(Attends):
        def forward(self, x: Tensor) -> Tensor:
            return self.attend(self.attend(x))

    assert len(nodes(merged(Recurrent()), "scaled_dot_product_attention")) == 2


def test_outputs_keep_their_names_and_become_copies():
    class Twice(Attends):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.project(x), self.project(x)

    model = Twice()
    before = [spec.arg.name for spec in plain_trace(model, X).graph_signature.output_specs]
    program = merged(model)
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == before
    assert len(nodes(program, "linear")) == len(nodes(program, "clone")) == 1


def test_other_constants_and_other_numbers_are_told_apart():
    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x * torch.tensor(1.0), x * torch.tensor(2.0), x * torch.tensor(1)
            return a - 2 * b - 3 * c + x.sum(1, True) - 3 * x.sum(2, True)

    program = merged(Others())
    assert len(nodes(program, "sum")) == 2
    assert len({node.args[1] for node in nodes(program, "mul") if node.args[0].name == "x"}) == 3


def test_what_draws_random_numbers_draws_them_again():
    def model(x: Tensor) -> Tensor:
        def drop() -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

        return drop() - drop() + torch.bernoulli(x.abs() > 0.5) - torch.bernoulli(x.abs() > 0.5)

    program = plain_trace(model, X)
    merge_equal(program)
    assert len(nodes(program, "scaled_dot_product_attention")) == 2
    assert len(nodes(program, "bernoulli")) == 2
