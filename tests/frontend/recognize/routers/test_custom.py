"""The reason why a router of no known form stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import insert
from tests import small_moh
from tests.frontend.traced import traced
from tests.nightly import nightly
from tests.zoo.model import noise

X = ModelInput("x", noise(2, 5, 8), {0: "batch"})


class RoutersOfParts(small_moh.SmallMoH):
    """The first two tokens have a router of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(8, 4), nn.Linear(8, 4)

    def gates(self, x: Tensor) -> Tensor:
        scores = (self.first(x[:, :2]), self.rest(x[:, 2:]))
        parts = [score.softmax(-1) * (score > 0) for score in scores]
        return torch.cat(parts, dim=1)


class AlikeRoutersOfParts(small_moh.SmallMoH):
    """The first two tokens have a router of their own, which does the same as that of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first = small_moh.SmallMoH()

    def gates(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.gates(x[:, :2]), super().gates(x[:, 2:])], dim=1)


class ReciprocalGates(small_moh.SmallMoH):
    def gates(self, x: Tensor) -> Tensor:
        return 1 / (1 + torch.cat([self.routed(x), self.shared(x)], dim=-1).exp().exp())


def reason_of(model: nn.Module) -> str | None:
    program = traced(model.eval(), (X,))
    (rewrite,) = insert(program, recognize(program))
    return rewrite.router.reason


@nightly
def test_routers_of_parts_that_do_the_same_are_one_of_their_form():
    program = traced(AlikeRoutersOfParts().eval(), (X,))
    (rewrite,) = insert(program, recognize(program))
    router = rewrite.router
    assert (router.form.name, router.num_shared_heads, router.top_k) == ("two_stage", 2, 1)
    assert (router.reason, rewrite.reason) == (None, None)


@nightly
def test_routers_that_are_joined_are_told_with_the_line():
    reason = reason_of(RoutersOfParts())
    assert reason is not None
    assert reason.startswith("cat (tests/small_moh.py:")
    assert "joins the gates of several routers that are not written alike" in reason


class SharedBehind(small_moh.SmallMoH):
    """The shared heads are the last ones; their gates are the form's in every other way."""

    def gates(self, x: Tensor) -> Tensor:
        return super().gates(x).roll(2, -1)


def test_shared_heads_behind_the_routed_ones_are_told():
    assert reason_of(SharedBehind()) == (
        "its shared heads, the last 2 of 4, stand behind the routed ones, and a MoHRouter has them"
        " in front: let the model order its heads that way; the router stays as ordinary operators"
    )


def test_any_other_router_is_of_no_published_form():
    reason = reason_of(ReciprocalGates())
    assert reason == "the router is of no published form; it stays as ordinary operators"
