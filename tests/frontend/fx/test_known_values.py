from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.frontend.fx.known_values import Constants, fixed_value
from moh_deploy.frontend.load.model import ModelInput
from tests.frontend.traced import traced
from tests.nightly import sampled

WEIGHT = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.25, -3.0]])


class Reads(nn.Module):
    """Returns a function of weights [2, 3] and an input [batch, seq, 3]."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, self.function(self.weight, x)


def value_of(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    x = ModelInput("x", torch.ones(4, 5, 3), {0: "batch", 1: "seq"})
    program = traced(Reads(function), [x])
    found = program.graph_module.graph.output_node().args[0][1]
    return fixed_value(found, Constants(program))


def test_repetition_for_each_sample_is_computed_once():
    value = value_of(lambda w, x: (w.expand(x.shape[0], -1, -1) * 2).sigmoid())
    torch.testing.assert_close(value, (WEIGHT * 2).sigmoid()[None])


def test_what_is_made_as_large_as_an_input_reads_nothing_of_it():
    value = value_of(lambda w, x: torch.zeros_like(x) + w[0])
    torch.testing.assert_close(value, WEIGHT[:1, None].expand(1, 1, 3))


def test_weight_itself_is_its_value():
    torch.testing.assert_close(value_of(lambda w, x: w * 1.0), WEIGHT)


OTHERS = {
    "an_input": lambda w, x: w * x[:, :1],
    "a_size_as_a_number": lambda w, x: w.expand(x.shape[0], -1, -1) * x.shape[1],
    "a_position_for_each_token": lambda w, x: torch.arange(x.shape[1]) + w[0, 0],
    "a_mean_over_other_sizes": lambda w, x: torch.zeros(x.shape[1], 3).cumsum(0) + w[0]
    + torch.ones(x.shape[1], 3).sum(0),
    "chance": lambda w, x: w + torch.rand_like(w),
}  # fmt: skip


@sampled(2)
@pytest.mark.parametrize("name", OTHERS)
def test_what_changes_the_value_leaves_it_unknown(name: str):
    assert value_of(OTHERS[name]) is None
