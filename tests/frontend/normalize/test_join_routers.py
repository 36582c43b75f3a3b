from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.graph import ancestors, op
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

# What two streams of three tokens and of two project to four heads, [B, S, H].
LOGITS = tuple(
    torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(2, 3, 4), (2, 2, 4)])
)
Route = Callable[[Tensor], Tensor]


def masked_logits(logits: Tensor) -> Tensor:
    kth = logits.topk(2, -1).values[..., -1:]
    return logits.masked_fill(logits < kth, float("-inf")).softmax(-1)


def scattered(logits: Tensor) -> Tensor:
    value, which = logits.softmax(-1).topk(2, -1)
    return torch.zeros_like(logits).scatter(-1, which, value / value.sum(-1, keepdim=True))


def one_hot(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return p * F.one_hot(p.topk(2, -1).indices, 4).sum(-2)


def best(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(-1), 4).to(logits.dtype) * logits.sigmoid()


def sorted_down(logits: Tensor) -> Tensor:
    kth = logits.sort(-1, descending=True).values.select(-1, 1).unsqueeze(-1)
    return torch.where(logits >= kth, logits.sigmoid(), 0.0)


def two_stages(logits: Tensor) -> Tensor:
    """Two shared heads, weighed against the better one of two routed heads."""
    shared, routed = logits.chunk(2, -1)
    p = routed.softmax(-1)
    p = p * F.one_hot(p.topk(1, -1).indices, 2).sum(-2)
    first, second = (logits[..., 1:3].softmax(-1) * 2).split([1, 1], -1)
    return torch.cat([shared.softmax(-1) * 2 * first, p / p.sum(-1, keepdim=True) * second], -1)


def rankings(function: Callable[..., object], *inputs: Tensor) -> int:
    """The rankings that are left; results must be what they were."""
    program = normalize(plain_trace(function, *inputs))
    torch.testing.assert_close(program.module()(*inputs), function(*inputs), rtol=0, atol=0)
    return sum(op(node) in ("topk", "argmax", "sort") for node in ancestors(output_of(program)))


def output_of(program: ExportedProgram) -> Node:
    return next(iter(reversed(program.graph_module.graph.nodes)))


@sampled(3)
@pytest.mark.parametrize(
    "route", [masked_logits, scattered, one_hot, best, sorted_down, two_stages]
)
@pytest.mark.parametrize("turned", [False, True])
def test_routers_that_do_the_same_become_one(route: Route, turned: bool):
    def joined(a: Tensor, b: Tensor) -> Tensor:
        if turned:  # [B, H, S]
            return torch.cat([route(a).mT, route(b).mT], 2).mT.contiguous()
        return torch.cat([route(a), route(b)], 1)

    # Transposed they are joined behind a view, which is not looked through.
    assert rankings(joined, *LOGITS) == (2 if turned else 1)


def best_alone(logits: Tensor) -> Tensor:
    value, which = logits.softmax(-1).topk(1, -1)
    return torch.zeros_like(logits).scatter(-1, which, value)


@sampled(2)
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.cat([scattered(a), best_alone(b)], 1),
        lambda a, b: torch.cat([scattered(a), masked_logits(b)], 1),
        lambda a, b: torch.cat([scattered(a[:, :2]), scattered(b)], -1),
        lambda a, b: torch.cat([scattered(a.double()), scattered(b)], 1),
    ],
    ids=["other top-k", "other weights", "along heads", "other dtype"],
)
def test_routers_that_differ_or_are_joined_along_heads_stay_apart(
    function: Callable[[Tensor, Tensor], Tensor],
):
    assert rankings(function, *LOGITS) == 2


def test_what_ranks_nothing_stays_as_it_is():
    def joined(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a.softmax(-1), b.softmax(-1)], 1)

    program = normalize(plain_trace(joined, *LOGITS))
    assert len(nodes(program, "softmax")) == 2
