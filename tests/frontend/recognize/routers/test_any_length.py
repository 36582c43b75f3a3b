"""What a trial of a few tokens does not show: it is not proven by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.forms import read_router
from tests.frontend.recognize.routers.test_ranked import HEADS, Base, SoftmaxOfChosen, mask
from tests.nightly import sampled


def form_at_any_length(make: type[nn.Module]) -> str:
    """The form of the gates of 16 tokens or any other number."""
    length = ({1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(make().eval(), (torch.randn(2, 16, 8),), dynamic_shapes=length)
    (gates,) = program.graph.output_node().args[0]
    return read_router(gates, None, Constants(program)).form.name


class AllOpenBehind(Base):
    """Behind position 512 every head is open: no example of 16 tokens shows that."""

    def gates(self, logits):
        gates = logits.sigmoid() * mask(logits, 2)
        near = torch.arange(logits.shape[1]) < 512
        return torch.where(near[None, :, None], gates, torch.ones_like(gates))


class ClosedBehind(Base):
    def gates(self, logits):
        rows = torch.ones_like(logits[..., :1]).cumsum(1).long() // 512
        return logits.sigmoid() * ((mask(logits, 2) > 0) & (rows == 0))


class RisingBehind(Base):
    def gates(self, logits):
        position = torch.arange(1, logits.shape[1] + 1) / 512
        return logits.sigmoid() * mask(logits, 2) * position.clamp(min=1)[None, :, None]


class TableOfPositions(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1024))

    def gates(self, logits):
        return logits.sigmoid() * mask(logits, 2) * self.table[: logits.shape[1], None]


class OpenByLength(Base):
    """A third head is open from 512 tokens on."""

    def gates(self, logits):
        best, where = logits.topk(4, dim=-1)
        best = best * (torch.arange(4) < 2 + logits.shape[1] // 512)
        return torch.zeros_like(logits).scatter(-1, where, best)


class CutByLength(Base):
    def gates(self, logits):
        best, where = logits.topk(4, dim=-1)
        number = 2 + logits.shape[1] // 512
        return torch.zeros_like(logits).scatter(-1, where[..., :number], best[..., :number])


class FilledByLength(Base):
    def gates(self, logits):
        factor = torch.full((HEADS,), max(1, logits.shape[1] // 512))
        return logits.sigmoid() * mask(logits, 2) * factor.clamp(max=2)


class Capacity(Base):
    """A head takes 64 tokens, and drops the others."""

    def gates(self, logits):
        chosen = mask(logits, 2)
        return logits.sigmoid() * chosen * (chosen.cumsum(1) <= 64)


class CapacityByTriangle(Base):
    """The same by a product with ones, as TPUs like it."""

    def gates(self, logits):
        chosen, length = mask(logits, 2), logits.shape[1]
        before = torch.ones(length, length).tril() @ chosen
        return logits.sigmoid() * chosen * (before <= 64)


class NoMoreThanHalf(Base):
    def gates(self, logits):
        chosen = mask(logits, 2)
        return logits.sigmoid() * chosen * (chosen.mean((0, 1)) < 0.99)


@sampled(3)
@pytest.mark.parametrize(
    "make",
    [
        AllOpenBehind,
        ClosedBehind,
        RisingBehind,
        TableOfPositions,
        OpenByLength,
        CutByLength,
        FilledByLength,
        Capacity,
        CapacityByTriangle,
        NoMoreThanHalf,
    ],
)
def test_what_more_tokens_would_change_is_not_proven_at_the_example(make: type[nn.Module]):
    assert form_at_any_length(make) == "custom"


class PutByRow(Base):
    """Rows are counted to say where to write: that decides nothing."""

    def gates(self, logits):
        best, where = logits.topk(2, dim=-1)
        rows = torch.arange(logits.shape[1])[None, :, None]
        images = torch.arange(logits.shape[0])[:, None, None]
        gates = torch.zeros_like(logits).index_put((images, rows, where), best.softmax(-1))
        return gates * 2.0


class LessTheirMean(Base):
    """Tokens are compared before heads are ranked: what follows is a router of its own."""

    def gates(self, logits):
        logits = logits - logits.mean(1, keepdim=True)
        return logits.sigmoid() * mask(logits, 2)


@pytest.mark.parametrize(
    ("make", "form"), [(SoftmaxOfChosen, "top_k"), (PutByRow, "top_k"), (LessTheirMean, "ranked")]
)
def test_routers_that_take_each_token_alike_are_read_at_any_length(
    make: type[nn.Module], form: str
):
    assert form_at_any_length(make) == form
