"""What a trial of a few tokens does not show: it is not proven by it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.forms import read_router
from tests.frontend.recognize.routers.test_ranked import (
    HEADS,
    Projected,
    kept_sigmoids,
    mask,
    softmax_of_chosen,
)
from tests.nightly import sampled

TABLE = torch.ones(1024)


def form_at_any_length(gates_of: Callable[[Tensor], Tensor]) -> str:
    """The form of the gates of 16 tokens or any other number."""
    length, model = ({1: torch.export.Dim.DYNAMIC},), Projected(gates_of).eval()
    program = torch.export.export(model, (torch.randn(2, 16, 8),), dynamic_shapes=length)
    (gates,) = program.graph.output_node().args[0]
    return read_router(gates, None, Constants(program)).form.name


def all_open_behind(logits: Tensor) -> Tensor:
    """Behind position 512 every head is open: no example of 16 tokens shows that."""
    gates = kept_sigmoids(logits)
    near = torch.arange(logits.shape[1]) < 512
    return torch.where(near[None, :, None], gates, torch.ones_like(gates))


def closed_behind(logits: Tensor) -> Tensor:
    rows = torch.ones_like(logits[..., :1]).cumsum(1).long() // 512
    return logits.sigmoid() * ((mask(logits, 2) > 0) & (rows == 0))


def rising_behind(logits: Tensor) -> Tensor:
    position = torch.arange(1, logits.shape[1] + 1) / 512
    return kept_sigmoids(logits) * position.clamp(min=1)[None, :, None]


def table_of_positions(logits: Tensor) -> Tensor:
    return kept_sigmoids(logits) * TABLE[: logits.shape[1], None]


def open_by_length(logits: Tensor) -> Tensor:
    """A third head is open from 512 tokens on."""
    best, where = logits.topk(4, dim=-1)
    best = best * (torch.arange(4) < 2 + logits.shape[1] // 512)
    return torch.zeros_like(logits).scatter(-1, where, best)


def cut_by_length(logits: Tensor) -> Tensor:
    best, where = logits.topk(4, dim=-1)
    number = 2 + logits.shape[1] // 512
    return torch.zeros_like(logits).scatter(-1, where[..., :number], best[..., :number])


def filled_by_length(logits: Tensor) -> Tensor:
    factor = torch.full((HEADS,), max(1, logits.shape[1] // 512))
    return kept_sigmoids(logits) * factor.clamp(max=2)


def capacity(logits: Tensor) -> Tensor:
    """A head takes 64 tokens, and drops the others."""
    return kept_sigmoids(logits) * (mask(logits, 2).cumsum(1) <= 64)


def capacity_by_triangle(logits: Tensor) -> Tensor:
    """The same by a product with ones, as TPUs like it."""
    before = torch.ones(logits.shape[1], logits.shape[1]).tril() @ mask(logits, 2)
    return kept_sigmoids(logits) * (before <= 64)


def no_more_than_half(logits: Tensor) -> Tensor:
    return kept_sigmoids(logits) * (mask(logits, 2).mean((0, 1)) < 0.99)


@sampled(3)
@pytest.mark.parametrize(
    "gates_of",
    [
        *(all_open_behind, closed_behind, rising_behind, table_of_positions, open_by_length),
        *(cut_by_length, filled_by_length, capacity, capacity_by_triangle, no_more_than_half),
    ],
)
def test_what_more_tokens_would_change_is_not_proven_at_the_example(gates_of):
    assert form_at_any_length(gates_of) == "custom"


def put_by_row(logits: Tensor) -> Tensor:
    """Rows are counted to say where to write: that decides nothing."""
    best, where = logits.topk(2, dim=-1)
    rows = torch.arange(logits.shape[1])[None, :, None]
    images = torch.arange(logits.shape[0])[:, None, None]
    gates = torch.zeros_like(logits).index_put((images, rows, where), best.softmax(-1))
    return gates * 2.0


def less_their_mean(logits: Tensor) -> Tensor:
    """Tokens are compared before heads are ranked: what follows is a router of its own."""
    return kept_sigmoids(logits - logits.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("gates_of", "form"),
    [(softmax_of_chosen, "top_k"), (put_by_row, "top_k"), (less_their_mean, "ranked")],
)
def test_routers_that_take_each_token_alike_are_read_at_any_length(gates_of, form: str):
    assert form_at_any_length(gates_of) == form
