from __future__ import annotations

import torch
from torch import Tensor

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Router
from tests.frontend.traced import traced
from tests.zoo.unusual import Parts


class Chosen(Parts):
    """The gates that learned queries choose, or what is learned and an input."""

    def __init__(self, *, reads_input: bool = False) -> None:
        super().__init__()
        self.latents = torch.nn.Parameter(torch.randn(5, 32))
        self.reads_input = reads_input

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        return self.gates(latents + x[:, :1] if self.reads_input else latents)


class OpenBehind(Parts):
    """Behind position 512 every head is open."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gates(torch.ones(1, 1, 32))
        near = torch.arange(x.shape[1])[None, :, None] < 512
        return torch.where(near, chosen, torch.ones_like(chosen))


def read(model: torch.nn.Module) -> Router:
    program = traced(model, [ModelInput("x", torch.ones(3, 7, 32), {0: "batch", 1: "seq"})])
    (gates,) = program.graph_module.graph.output_node().args[0]
    return read_router(gates, None, Constants(program))


def test_gates_of_learned_queries_are_known():
    model = Chosen()
    router = read(model)
    assert (router.form.name, router.num_shared_heads, router.top_k) == ("constant", 0, 2)
    torch.testing.assert_close(router.fixed_gates, model.gates(model.latents)[None])
    # Nothing is ranked at run time, so no flip may be excused as a tie.
    assert router.selection is None
    assert router.reason is None


def test_queries_that_an_input_changes_choose_at_run_time():
    router = read(Chosen(reads_input=True))
    assert router.form.name == "top_k"
    assert router.fixed_gates is None


def test_gates_that_positions_change_are_not_known():
    router = read(OpenBehind())
    assert (router.form.name, router.fixed_gates) == ("custom", None)
