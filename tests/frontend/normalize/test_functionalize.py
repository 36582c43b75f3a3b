from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.functionalize import functionalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def in_place(program: torch.export.ExportedProgram) -> list[str]:
    return [
        node.name
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    ]


def renamed(x: Tensor) -> Tensor:
    return torch.sin(x).mul_(2).add_(1)


def through_a_view(x: Tensor) -> Tensor:
    y = torch.sin(x)
    y.transpose(1, 2).mul_(2)
    return y


def through_the_source_of_a_view(x: Tensor) -> Tensor:
    y = torch.sin(x)
    view = y.reshape(-1)
    y.mul_(2)
    return view + 1


def read_before_and_after(x: Tensor) -> Tensor:
    y = torch.sin(x)
    before = y * 3
    y.add_(1)
    return before + y


def into_a_slice(x: Tensor) -> Tensor:
    y = torch.sin(x)
    y[:, 0] = 7
    return y


def scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_(-1, x.topk(2, -1).indices, 1.0)


def slice_twice(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., :2].add_(x[..., :2])
    y[..., 1:].mul_(x[..., 1:])
    return y


def filled_after_copy(x: Tensor) -> Tensor:
    y = x.clone()
    y.masked_fill_(y > 0, -1.0)
    return y


FUNCTIONS = (
    renamed,
    through_a_view,
    through_the_source_of_a_view,
    read_before_and_after,
    into_a_slice,
    scattered,
    slice_twice,
    filled_after_copy,
)


@sampled(3)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_program_without_in_place_operators_computes_the_same(function: Callable[[Tensor], Tensor]):
    program = plain_trace(function, X)
    assert in_place(program)
    functional = functionalize(program)
    assert in_place(functional) == []
    torch.testing.assert_close(functional.module()(X.clone()), function(X.clone()))


def test_later_readers_of_the_changed_tensor_read_the_result():
    """Tracing lets them read the in-place operator; a program may name the tensor itself."""
    program = plain_trace(read_before_and_after, X)
    (sine,), (addition,) = nodes(program, "sin"), nodes(program, "add")[:1]
    addition.replace_all_uses_with(sine)
    program.graph_module.recompile()
    functional = functionalize(program)
    assert addition in sum((user.args for user in addition.users), ())
    torch.testing.assert_close(functional.module()(X), read_before_and_after(X))


@pytest.mark.parametrize("function", [renamed, scattered], ids=lambda function: function.__name__)
def test_renaming_keeps_the_program(function: Callable[[Tensor], Tensor]):
    program = plain_trace(function, X)
    count = len(program.graph.nodes)
    assert functionalize(program) is program
    assert len(program.graph.nodes) == count


def test_program_without_in_place_operators_is_left_alone():
    program = plain_trace(torch.sin, X)
    assert functionalize(program) is program


def test_change_of_an_input_is_not_renamed_away():
    """The caller sees it: renaming would lose it."""

    def changes_its_input(x: Tensor) -> Tensor:
        x.mul_(2)
        return x + 1

    functional = functionalize(plain_trace(changes_its_input, X))
    assert in_place(functional) == []
    torch.testing.assert_close(functional.module()(X.clone()), X * 2 + 1)


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x.mT


def out_of_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x @ x.mT


def with_gradients(x: Tensor) -> Tensor:
    with torch.enable_grad():
        return x @ x.mT


@sampled(3)
@pytest.mark.parametrize("region", [under_autocast, out_of_autocast, with_gradients])
def test_region_that_sets_a_mode_is_written_out(region: Callable[[Tensor], Tensor]):
    with torch.no_grad():
        traced, expected = plain_trace(region, X), region(X)
    assert not nodes(traced, "matmul")
    program = functionalize(traced)
    assert nodes(program, "matmul")
    result = program.module()(X)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected)


def test_pieces_that_an_inner_module_returns_need_no_names():
    class Pieces(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return through_a_view(x).chunk(4, -1)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pieces = Pieces()

        def forward(self, x: Tensor) -> Tensor:
            x.unbind(1)  # torch drops it when it traces again, and numbers the pieces anew
            return self.pieces(x)[1]

    model = Model()
    program = torch.export.export(model, (X,), preserve_module_call_signature=("pieces",))
    torch.testing.assert_close(functionalize(program).module()(X), model(X))


TOKENS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Counts(nn.Module):
    """Its function sees the number of calls and the load of four heads."""

    def __init__(self, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("load", torch.zeros(4))

    def forward(self, x: Tensor) -> object:
        self.calls += 1
        self.load.mul_(0.9).add_((x > 0).float().mean(0), alpha=0.1)
        return self.function(self, x)


def left(function: Callable[[nn.Module, Tensor], object]) -> list[str]:
    """The buffers whose change stays in the program; its results must be the module's."""
    program = normalize(plain_trace(Counts(function), TOKENS))
    torch.testing.assert_close(program.module()(TOKENS), Counts(function)(TOKENS))
    specs = program.graph_signature.output_specs
    return [spec.target for spec in specs if spec.kind is OutputKind.BUFFER_MUTATION]


def checked(module: nn.Module, x: Tensor) -> Tensor:
    count = (x > 0).sum().item()
    torch._check(count >= 1)
    torch._check(count <= 100)
    return x.softmax(-1)


def checked_and_read(module: nn.Module, x: Tensor) -> Tensor:
    count = (x > 0).sum().item()
    torch._check(count >= 1)
    return x * count


def test_counts_that_nothing_reads_are_dropped():
    assert left(lambda m, x: (x.softmax(-1), {"sum": x.sum()})) == []
    program = normalize(plain_trace(Counts(checked), TOKENS))
    assert [op(node) for node in program.graph.nodes if node.op == "call_function"] == ["softmax"]
    torch.testing.assert_close(program.module()(TOKENS), TOKENS.softmax(-1))
    assert left(checked_and_read) == []


@sampled(3)
@pytest.mark.parametrize(
    "reads",
    [
        lambda m, x: x * m.load,
        lambda m, x: (x, m.calls + 0),
        lambda m, x: x / m.calls,
    ],
    ids=["multiplies", "returns", "divides"],
)
def test_state_that_a_result_depends_on_stays(reads: Callable[[nn.Module, Tensor], object]):
    assert left(reads) == ["calls", "load"]
