from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from tests.frontend.traced import nodes, plain_trace
from tests.small_moh import build

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def inserted(model: nn.Module) -> tuple[ExportedProgram, list[Rewrite]]:
    program = normalize(plain_trace(model, X))
    return program, insert(program, recognize(program))


def moh_operators(program: ExportedProgram) -> list[int]:
    return [len(nodes(program, name)) for name in ("attention", "router")]


def test_committed_program_has_the_operators_and_nothing_of_what_they_replace():
    program = commit(*inserted(build()))
    assert moh_operators(program) == [1, 1]
    for replaced in ("scaled_dot_product_attention", "topk", "one_hot", "softmax"):
        assert [node for node in nodes(program, replaced) if node.users] == []


def test_committed_program_returns_the_outputs_and_then_the_gates():
    model = build().eval()
    outputs = commit(*inserted(model)).module()(X)
    torch.testing.assert_close(outputs, (model(X), model.gates(X)))


def test_layer_that_is_kept_stays_as_it_is():
    program, (rewrite,) = inserted(build())
    committed = commit(program, [rewrite.kept("it is wrong")])
    assert moh_operators(committed) == [0, 0]
    assert len(nodes(committed, "scaled_dot_product_attention")) == 1
    model = build().eval()
    torch.testing.assert_close(committed.module()(X), (model(X), model.gates(X)))


def test_inserting_alone_changes_no_output():
    model = build().eval()
    program, _ = inserted(model)
    torch.testing.assert_close(program.module()(X), model(X))


def test_router_that_serves_two_layers_is_replaced_for_both():
    class OneChoiceForTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.first, self.second = build(), build(), build()
            self.chosen = []
            self.first.gates = self.second.gates = lambda x: self.chosen.pop()

        def forward(self, x):
            self.chosen.extend([self.router.gates(x)] * 2)
            return self.second(self.first(x))

    model = OneChoiceForTwo().eval()
    program, rewrites = inserted(model)
    expected = model(X)
    committed = commit(program, rewrites)
    assert len(rewrites) == 2
    assert nodes(committed, "topk") == []
    torch.testing.assert_close(committed.module()(X)[0], expected)


def test_structured_outputs_become_a_flat_tuple():
    class Structured(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = build()

        def forward(self, x):
            y = self.layer(x)
            return {"y": y, "more": (None, y.sum(), 3)}

    model = Structured().eval()
    outputs = commit(*inserted(model)).module()(X)
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 8), (), (2, 5, 4)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's, about its own code
def test_names_that_a_file_has_for_an_inner_module_are_left_out():
    class Halves(nn.Module):
        def forward(self, x):
            return x.chunk(2, -1)

    class OfHalves(nn.Module):
        def __init__(self):
            super().__init__()
            self.halves = Halves()

        def forward(self, x):
            x.unbind(1)  # goes, and pieces are numbered anew
            return self.halves(x)[1]

    model = OfHalves()
    program = torch.export.export(model, (X,), preserve_module_call_signature=("halves",))
    again = commit(normalize(program), []).run_decompositions({})
    torch.testing.assert_close(again.module()(X), (model(X),))
