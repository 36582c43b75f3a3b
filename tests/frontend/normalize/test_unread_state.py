from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import plain_trace
from tests.nightly import sampled

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


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
    program = normalize(plain_trace(Counts(function), X))
    torch.testing.assert_close(program.module()(X), Counts(function)(X))
    specs = program.graph_signature.output_specs
    return [spec.target for spec in specs if spec.kind is OutputKind.BUFFER_MUTATION]


def test_counts_that_nothing_reads_are_dropped():
    assert left(lambda m, x: (x.softmax(-1), {"sum": x.sum()})) == []


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
