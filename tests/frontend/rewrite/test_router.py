import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import ancestors, op
from moh_deploy.frontend.fx.known_values import Constants, StoredNodes
from moh_deploy.frontend.recognize.projection import read_projection
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.rewrite.router import insert_router, merge_logits
from tests.frontend.traced import Values, plain_trace
from tests.nightly import sampled


class Router(nn.Module):
    """The best of two routed heads behind two shared ones, after an optional change of layout."""

    def __init__(self, before=lambda x: x, after=lambda g: g) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.routed, self.shared = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        x = self.before(x)
        p = self.routed(x).softmax(-1)
        kept = p * F.one_hot(p.topk(1, -1).indices, 2).sum(-2)
        kept = kept / kept.sum(-1, keepdim=True)
        return self.after(torch.cat([self.shared(x).softmax(-1) * 2, kept], dim=-1))


class HeadsFirst(Router):
    """Scores are [H, B, S]."""

    def forward(self, x):
        p = self.routed(x).permute(2, 0, 1).softmax(0)
        chosen = F.one_hot(p.topk(1, 0).indices[0], 2).permute(2, 0, 1)
        kept = p * chosen
        shared = self.shared(x).permute(2, 0, 1).softmax(0) * 2
        return torch.cat([shared, kept / kept.sum(0, keepdim=True)]).permute(1, 2, 0)


class Mask(Router):
    """A mask of whole numbers."""

    def forward(self, x):
        return F.one_hot(self.routed(x).softmax(-1).topk(1, -1).indices, 2).sum(-2)


ROUTERS = {
    "batched": Router(),
    "flat_tokens": Router(lambda x: x.reshape(-1, 8)),
    "unflattened_after": Router(lambda x: x.reshape(-1, 8), lambda g: g.unflatten(0, (2, 5))),
    "map_of_tokens": Router(lambda x: x.reshape(2, 1, 5, 8)),
    "one_token": Router(lambda x: x[:, :1]),
    "whole_numbers": Mask(),
    "heads_first": HeadsFirst(),
}


@sampled(3)
@pytest.mark.parametrize("name", ROUTERS)
def test_router_takes_the_place_of_its_gates(name: str):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    program = plain_trace(ROUTERS[name], x)
    (gates,) = program.graph.output_node().args[0]
    router = read_router(gates, None, Constants(program))
    assert router.reason is None
    routed = insert_router(GraphBuilder(program.graph, gates.next), router, gates)
    program.graph_module.recompile()
    values = Values(program, x).of
    torch.testing.assert_close(values[routed], values[gates])


def test_logits_of_each_token_are_read_as_they_are():
    program = plain_trace(Router(), torch.zeros(2, 5, 8))
    (gates,) = program.graph.output_node().args[0]
    router = read_router(gates, None, Constants(program))
    node = insert_router(GraphBuilder(program.graph, gates.next), router, gates)
    assert op(node) == "router"
    assert [op(logits) for logits in node.args[:2]] == ["linear", "linear"]
    assert node.args[2:] == (None, 1, 2, "weighted")


def merged(module: nn.Module) -> list[str]:
    """What makes the logits of the router after merging, which must not change its gates."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    program = plain_trace(module, x)
    gates = program.graph.output_node().args[0][0]
    constant = Constants(program)
    router = read_router(gates, None, constant)
    routed = insert_router(GraphBuilder(program.graph, gates.next), router, gates)
    stored = StoredNodes(program.graph, constant)
    merge_logits(routed, gates, lambda node: read_projection(node, stored))
    program.graph_module.recompile()
    values = Values(program, x).of
    torch.testing.assert_close(values[routed], values[gates])
    made = ancestors(routed)
    return sorted(op(node) for node in made if op(node) in ("linear", "slice", "cat"))


@sampled(2)
@pytest.mark.parametrize("name", ["batched", "flat_tokens", "unflattened_after", "map_of_tokens"])
def test_logits_are_parts_of_one_product(name: str):
    # Of weights and biases, which are put behind one another once, at export.
    assert merged(ROUTERS[name]) == ["cat", "cat", "linear", "slice", "slice"]


class WithoutBias(Router):
    def __init__(self) -> None:
        super().__init__()
        self.routed, self.shared = (nn.Linear(8, 2, bias=False) for _ in range(2))


def test_logits_without_a_bias_are_merged_without_one():
    assert merged(WithoutBias()) == ["cat", "linear", "slice", "slice"]


class OneBias(Router):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 2, bias=False)


class TwoSources(Router):
    def forward(self, x):
        p = self.routed(x).softmax(-1)
        kept = p * F.one_hot(p.topk(1, -1).indices, 2).sum(-2)
        kept = kept / kept.sum(-1, keepdim=True)
        return torch.cat([self.shared(x * 2).softmax(-1) * 2, kept], dim=-1)


class SameLogitsAreRead(Router):
    def forward(self, x):
        kept = []
        hook = self.routed.register_forward_hook(lambda module, given, result: kept.append(result))
        gates = super().forward(x)
        hook.remove()
        return gates, kept[0].logsumexp(-1)


@pytest.mark.parametrize("router", [OneBias, TwoSources, SameLogitsAreRead])
def test_logits_of_another_kind_or_for_others_stay_apart(router: type[Router]):
    assert merged(router()) == ["linear", "linear"]
