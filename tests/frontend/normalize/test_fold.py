from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::attention
from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize import fold
from moh_deploy.frontend.normalize.fold import fold_constants, merge_equal
from tests.frontend.traced import nodes, plain_trace

X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


class Uses(nn.Module):
    """A function of the input and a weight [32, 32]."""

    def __init__(self, function: Callable[[Tensor, Tensor], object], dtype: torch.dtype) -> None:
        super().__init__()
        self.function = function
        value = torch.arange(1024.0).reshape(32, 32).cos() * 5
        self.weight = nn.Parameter(value.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> object:
        return self.function(x, self.weight)


def folded(model: nn.Module) -> ExportedProgram:
    program = plain_trace(model, X)
    fold_constants(program)
    return program


def left(function: Callable[[Tensor, Tensor], object], dtype: torch.dtype = torch.float32):
    """The operators that stay; the result must stay, too."""
    model = Uses(function, dtype)
    program = folded(model)
    torch.testing.assert_close(program.module()(X), model(X))
    return [op(node) for node in program.graph.nodes if op(node) and node.users]


def test_what_is_made_of_a_weight_takes_its_place():
    assert left(lambda x, w: x @ (w.mT * 2).exp()) == ["matmul"]


def test_parts_of_a_weight_take_its_place():
    assert left(lambda x, w: (x @ w[:, :8], x @ w[:, 8:])) == ["matmul", "matmul"]


def test_nothing_in_between_stays():
    program = folded(Uses(lambda x, w: x @ w.mT, torch.float32))
    read = [spec.target for spec in program.graph_signature.input_specs if spec.target]
    assert read == ["weight_part", "weight"]
    assert [len(n.users) for n in program.graph.nodes if n.op == "placeholder"] == [1, 0, 1]


def test_outputs_made_of_weights_alone_keep_the_names_that_the_program_has():
    model = Uses(lambda x, w: (x @ (w * 2).mT, (w * 2).mT, (w * 2).mT), torch.float32)
    program = folded(model)
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    named = [spec.arg.name for spec in program.graph_signature.output_specs]
    assert [node.name for node in outputs] == named
    torch.testing.assert_close(program.module()(X), model(X))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x @ w[:, :8] @ w[:8] @ w,
        lambda x, w: (x @ w[:, :8], w),
    ],
    ids=["read_whole", "output"],
)
def test_weight_that_is_read_as_it_is_is_not_stored_twice(function):
    assert "slice" in left(function)


def test_weight_does_not_grow():
    assert left(lambda x, w: x @ (w.to(torch.float32) * 0.1), torch.int8) == ["to", "mul", "matmul"]
    assert "expand" in left(lambda x, w: x @ w.mean(0).expand(4096, 32).mT)


def test_overlapping_parts_are_not_stored_twice():
    assert left(lambda x, w: (x @ w[:, :24], x @ w[:, 8:])).count("slice") == 2


def test_random_numbers_are_drawn_in_each_run():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.bernoulli(self.weight * 0.5)

    program = folded(Noisy())
    assert "bernoulli" in [op(node) for node in program.graph.nodes]


class PositionBias(nn.Module):
    """Attention with a bias that a network makes of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("places", torch.randn(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.net(self.places) - self.net(self.places).mT
        y = x[:, None].expand(-1, 64, -1)
        return torch.ops.moh.attention(y, y, y, y[..., :1], bias, None, None, 1, 1, 1.0, False)


def test_what_a_moh_operator_reads_is_computed_once_although_it_may_grow():
    model = PositionBias()
    program = folded(model)
    torch.testing.assert_close(program.module()(X), model(X))
    names = [op(node) for node in program.graph.nodes]
    assert {"linear", "relu"}.isdisjoint(names)
    assert "attention" in names


def test_attention_of_weights_alone_is_computed_and_what_it_reads_is_not():
    def model(x: Tensor, w: Tensor) -> Tensor:
        y = w.mT.exp()[None]
        y = torch.ops.moh.attention(y, y, y, y[..., :1], None, None, None, 1, 1, 1.0, False)
        return x[:, None] * y.exp()

    names = left(model)
    assert "attention" in names
    assert names.count("exp") == 1  # the one behind it


def test_what_a_moh_operator_reads_is_not_stored_where_it_is_large(monkeypatch):
    monkeypatch.setattr(fold, "_OPERAND_BYTES", 64 * 64 * 4 - 1)
    assert "sub" in [op(node) for node in folded(PositionBias()).graph.nodes]


def test_output_and_other_readers_read_the_same_value():
    # Were it folded for one of them, what is fed in its place would reach that one alone.
    def model(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        doubled = w * 2
        return x @ doubled, doubled

    program = folded(Uses(model, torch.float32))
    product, output = program.graph_module.graph.output_node().args[0]
    assert op(output) == "mul"
    assert output in product.all_input_nodes


def rotary(x: Tensor, w: Tensor, *, heads: int = 1) -> Tensor:
    """Multiply by a table of angles that is computed of numbers alone."""
    angles = torch.arange(2)[:, None] * 10000.0 ** (-torch.arange(16) / 16)
    return x * torch.cat((angles.cos(), angles.sin()), dim=-1).expand(heads, 2, 32) + w[0]


def test_what_libraries_round_differently_is_folded_by_torch():
    names = left(partial(rotary, heads=9))
    assert {"pow", "cos", "sin"}.isdisjoint(names)
    assert "expand" in names  # repeating what is stored takes no place


def test_table_is_folded_as_far_as_it_is_small(monkeypatch):
    monkeypatch.setattr(fold, "_OPERAND_BYTES", 2 * 16 * 4 - 1)
    names = left(rotary)
    assert "pow" not in names
    assert {"mul", "cos", "sin"} <= set(names)


def test_original_that_torch_does_not_run_is_not_folded_by_it():
    program = plain_trace(Uses(rotary, torch.float32), X)
    fold_constants(program, by_torch=False)
    assert "pow" in [op(node) for node in program.graph.nodes]


def test_operators_that_round_alike_everywhere_stay():
    def model(x: Tensor, w: Tensor) -> Tensor:
        causal = torch.arange(2)[:, None] >= torch.arange(32)
        return torch.where(causal, x, -1e9) @ (w / 3)

    assert {"ge", "where"} <= set(left(model))


def test_parts_of_a_tuple_are_folded():
    def model(x: Tensor, w: Tensor) -> Tensor:
        best, places = w.softmax(-1).topk(2)
        return x[:, places[0]] * best[0] + w[0, 0]

    assert "topk" not in left(model)


TOKENS = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))


def merged(model: nn.Module):
    """The program of a model, which computes what the model does."""
    program = plain_trace(model, TOKENS)
    merge_equal(program)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    torch.testing.assert_close(program.module()(TOKENS), model(TOKENS))
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
    before = [spec.arg.name for spec in plain_trace(model, TOKENS).graph_signature.output_specs]
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

    program = plain_trace(model, TOKENS)
    merge_equal(program)
    assert len(nodes(program, "scaled_dot_product_attention")) == 2
    assert len(nodes(program, "bernoulli")) == 2
