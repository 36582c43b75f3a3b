"""Equal mathematics, however it is written, is the published form; anything else is custom."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.recognize.routers.forms import read_router
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.rewrite import insert
from tests import small_moh
from tests.frontend.recognize.routers.test_ranked import read as rewritten
from tests.frontend.traced import nodes, plain_trace, traced
from tests.nightly import nightly, sampled
from tests.zoo.model import noise
from tests.zoo.unusual import Parts

EPS = torch.finfo(torch.float32).eps


class TwoStage(nn.Module):
    """Two shared heads and the best two of four routed ones, as published; parts may be changed."""

    shared, routed, k = 2, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.to_routed = nn.Linear(8, self.routed, bias=False)
        self.to_shared = nn.Linear(8, self.shared, bias=False)
        self.to_stage = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stage = self.stage_weights(self.to_stage(x))
        shared = self.shared_gates(self.to_shared(x)) * stage[..., :1]
        routed = self.routed_gates(self.to_routed(x)) * stage[..., 1:]
        return self.put_together(shared, routed)

    def stage_weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * 2

    def shared_gates(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * self.shared

    def routed_gates(self, logits: Tensor) -> Tensor:
        scores = logits.softmax(-1)
        return self.renormalised(scores * self.chosen(scores)) * self.k

    def chosen(self, scores: Tensor) -> Tensor:
        best = scores.topk(self.k, dim=-1).indices
        return F.one_hot(best, self.routed).sum(-2)

    def renormalised(self, kept: Tensor) -> Tensor:
        return kept / kept.sum(-1, keepdim=True).clamp(min=EPS)

    def put_together(self, shared: Tensor, routed: Tensor) -> Tensor:
        return torch.cat([shared, routed], dim=-1)


def changed(parts: Mapping[str, Callable[..., Tensor]]) -> type[TwoStage]:
    """The published router with some of its methods replaced."""
    return type("Changed", (TwoStage,), dict(parts))


def scattered_values(self, logits):
    value, best = F.softmax(logits, dim=-1).topk(self.k, dim=-1)
    value = value / value.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, best, value * self.k)


def filled_with_zeros(self, logits):
    scores = logits.softmax(-1)
    kept = scores.masked_fill(self.chosen(scores) == 0, 0.0)
    return self.k * (kept / kept.sum(-1).unsqueeze(-1))


def softmax_of_chosen(self, logits):
    return logits.masked_fill(self.chosen(logits) == 0, float("-inf")).softmax(-1)


def stage_by_einsum(self, x):
    first, second = self.stage_weights(self.to_stage(x)).unbind(-1)
    shared = torch.einsum("bs,bsh->bsh", first, self.shared_gates(self.to_shared(x)))
    routed = torch.einsum("bs,bsh->bsh", second, self.routed_gates(self.to_routed(x)))
    return self.put_together(shared, routed)


def share(kept: Tensor, epsilon: float) -> Tensor:
    return kept / (kept.sum(-1, keepdim=True) + epsilon)


# The same, in other words.
SAME: dict[str, Mapping[str, Callable[..., Tensor]]] = {
    "as_published": {},
    "flat_tokens": {
        "forward": lambda self, x: TwoStage.forward(self, x.reshape(-1, 8)).reshape(
            *x.shape[:2], -1
        )
    },
    "scattered_mask": {
        "chosen": lambda self, p: torch.zeros_like(p).scatter_(-1, p.topk(self.k, -1)[1], 1.0)
    },
    "threshold": {"chosen": lambda self, p: (p >= p.topk(self.k, dim=-1).values[..., -1:]).to(p)},
    "sorted_choice": {
        "chosen": lambda self, p: F.one_hot(
            p.sort(dim=-1, descending=True).indices[..., : self.k], 4
        ).sum(-2)
    },
    "scattered_values": {"routed_gates": scattered_values},
    "filled_with_zeros": {"routed_gates": filled_with_zeros},
    # Softmax of the chosen logits is the renormalised softmax of all.
    "softmax_after_choice": {
        "routed_gates": lambda self, logits: softmax_of_chosen(self, logits) * self.k
    },
    "stage_by_einsum": {"forward": stage_by_einsum},
    # The stage is met before the shared logits, which have the same size.
    "shared_from_afar": {
        "shared_gates": lambda self, logits: (
            TwoStage.shared_gates(self, logits).mT.contiguous().mT.clone()
        )
    },
    "padded_and_added": {
        "put_together": lambda self, shared, routed: F.pad(shared, (0, 4)) + F.pad(routed, (2, 0))
    },
    "put_together_flat": {
        "put_together": lambda self, shared, routed: torch.hstack(
            [shared.flatten(0, 1), routed.flatten(0, 1)]
        ).unflatten(0, (2, 5))
    },
    # Added, not clamped, but below what a float can show.
    "tiny_epsilon": {"renormalised": lambda self, kept: share(kept, 1e-20)},
    "epsilon_that_float32_does_not_show": {"renormalised": lambda self, kept: share(kept, 1e-9)},
}

# One thing is different. A MoHRouter ranks for these, and operators weigh.
WEIGHED: dict[str, tuple[str, Mapping[str, Callable[..., Tensor]]]] = {
    "not_renormalised": ("mixed", {"renormalised": lambda self, kept: kept}),
    # The choice is made at another temperature than the gates.
    "temperature": (
        "mixed",
        {
            "routed_gates": lambda self, logits: (
                self.renormalised((logits / 0.5).softmax(-1) * self.chosen(logits.softmax(-1)))
                * self.k
            )
        },
    ),
    "sigmoid_scores": (
        "mixed",
        {
            "routed_gates": lambda self, logits: (
                self.renormalised((p := logits.sigmoid()) * self.chosen(p)) * self.k
            )
        },
    ),
    "stage_not_scaled": ("mixed", {"stage_weights": lambda self, logits: logits.softmax(-1)}),
    "stages_swapped": (
        "mixed",
        {"stage_weights": lambda self, logits: logits.softmax(-1).flip(-1) * 2},
    ),
    # Heads are ranked by the gates of the token before.
    "chosen_from_another": (
        "scored",
        {"chosen": lambda self, p: TwoStage.chosen(self, p.roll(1, dims=1))},
    ),
    # A softmax over the tokens, not over the heads.
    "shared_across_tokens": (
        "mixed",
        {"shared_gates": lambda self, logits: logits.softmax(1) * self.shared},
    ),
}

# For these nothing does.
CUSTOM: dict[str, Mapping[str, Callable[..., Tensor]]] = {
    "large_epsilon": {"renormalised": lambda self, kept: share(kept, 1e-6)},
    # The choice is taken back: every head is weighed.
    "softmax_of_all_after_choice": {
        "routed_gates": lambda self, logits: (logits + self.chosen(logits)).softmax(-1) * self.k
    },
    "softmax_of_masked_zeros": {
        "routed_gates": lambda self, logits: (
            (logits * self.chosen(logits.softmax(-1))).softmax(-1) * self.k
        )
    },
    "smallest_heads": {
        "chosen": lambda self, p: F.one_hot(p.topk(self.k, -1, largest=False)[1], 4).sum(-2)
    },
    "routed_first": {
        "put_together": lambda self, shared, routed: torch.cat([routed, shared], dim=-1)
    },
    "heads_reordered": {
        "routed_gates": lambda self, logits: TwoStage.routed_gates(self, logits).flip(-1)
    },
    "bias_on_gates": {
        "put_together": lambda self, shared, routed: torch.cat([shared, routed], -1) + 1e-4
    },
    # More than the logits decides.
    "input_dependent_scale": {
        "forward": lambda self, x: TwoStage.forward(self, x) * x.sum(-1, keepdim=True).tanh()
    },
}


# The other published forms.


class SingleStage(TwoStage):
    shared = 0

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.to_routed = nn.Linear(8, self.routed, bias=False)

    def forward(self, x):
        return self.routed_gates(self.to_routed(x))


class OneSharedHead(TwoStage):
    shared = 1

    def shared_gates(self, logits):
        return torch.ones(*logits.shape[:2], 1)


class OneSharedHeadFromAnotherTensor(OneSharedHead):
    """Only the shape of the other tensor matters."""

    def shared_gates(self, logits):
        return torch.ones_like(logits)


class OneSharedHeadWithItsSoftmax(TwoStage):
    shared = 1


class OneSharedHeadTimesTwo(OneSharedHead):
    def shared_gates(self, logits):
        return torch.full_like(logits, 2.0)


class AllShared(TwoStage):
    def forward(self, x):
        return self.to_routed(x).softmax(-1) * self.routed


class AllSharedBySigmoid(TwoStage):
    def forward(self, x):
        return self.to_routed(x).sigmoid() * self.routed


class Mask(SingleStage):
    def forward(self, x):
        return self.chosen(self.to_routed(x).softmax(-1)).float()


class MaskOfSigmoid(Mask):
    """Another score, but the same heads."""

    def forward(self, x):
        return self.chosen(self.to_routed(x).sigmoid()).float()


class MaskTimesK(Mask):
    def forward(self, x):
        return super().forward(x) * self.k


class QueryNorm(TwoStage):
    """Two heads always run; of four, those with the longest queries, in units of their spread."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.query = nn.Linear(8, 6 * 3)

    def forward(self, x):
        queries = self.query(x).unflatten(-1, (6, 3))
        loud = torch.norm(queries[:, :, 2:], dim=-1)
        chosen = self.chosen((loud / loud.std(-1, keepdim=True)).softmax(-1))
        return torch.cat([torch.ones(*x.shape[:2], 2), chosen], dim=-1)


class QueryNormLast(QueryNorm):
    """The heads that always run are the last ones."""

    def forward(self, x):
        return super().forward(x).flip(-1)


FORMS = {
    SingleStage: ("top_k", 0, 2),
    OneSharedHead: ("two_stage", 1, 2),
    OneSharedHeadFromAnotherTensor: ("two_stage", 1, 2),
    OneSharedHeadWithItsSoftmax: ("two_stage", 1, 2),
    OneSharedHeadTimesTwo: ("mixed", 1, 2),
    AllShared: ("shared", 4, 0),
    AllSharedBySigmoid: ("custom", None, None),
    Mask: ("mask", 0, 2),
    MaskOfSigmoid: ("mask", 0, 2),
    MaskTimesK: ("ranked", 0, 2),
    QueryNorm: ("query_norm", 2, 2),
    QueryNormLast: ("custom", 2, 2),
}


def read(make: type[nn.Module], *, query: bool = False) -> Router:
    """Read a router for two sequences of five tokens; its projection may be that of the query."""
    program = plain_trace(make(), torch.zeros(2, 5, 8))
    (gates,) = program.graph.output_node().args[0]
    projections = nodes(program, "linear")
    return read_router(gates, projections[-1] if query else None, Constants(program))


class LoudestHead(QueryNorm):
    """One head is chosen, so that a sum of the chosen probabilities would divide it by itself."""

    k = 1


class MostLikelyHead(LoudestHead):
    """The same with that sum, which is no number where the probability is none."""

    def chosen(self, scores):
        return self.renormalised(scores * super().chosen(scores))


def test_one_chosen_head_is_a_mask_where_its_gate_is_a_number_for_logits_that_are_none():
    mask, weighted = (read(make, query=True) for make in (LoudestHead, MostLikelyHead))
    assert (mask.form.name, mask.gate_mode) == ("query_norm", "mask")
    assert (weighted.form.name, weighted.gate_mode) == ("top_k", "weighted")


@sampled(3)
@pytest.mark.parametrize("name", SAME)
def test_router_in_other_words_is_the_published_form(name: str):
    router = read(changed(SAME[name]))
    assert (router.form.name, router.num_shared_heads, router.top_k) == ("two_stage", 2, 2)
    assert router.reason is None


@sampled(3)
@pytest.mark.parametrize("name", WEIGHED)
def test_router_that_weighs_in_another_way_is_not_the_published_one(name: str):
    form, parts = WEIGHED[name]
    router, gates, inserted = rewritten(changed(parts)())
    assert (router.form.name, router.num_shared_heads, router.top_k) == (form, 2, 2)
    torch.testing.assert_close(inserted, gates)


@sampled(3)
@pytest.mark.parametrize("name", CUSTOM)
def test_router_that_deviates_is_custom(name: str):
    router = read(changed(CUSTOM[name]))
    assert router.form.name == "custom"
    why = "stand behind the routed ones" if name == "routed_first" else "no published form"
    assert why in router.reason
    assert (router.routed_logits, router.shared_logits, router.stage_logits) == (None, None, None)


@sampled(4)
@pytest.mark.parametrize("make", FORMS)
def test_other_forms(make: type[nn.Module]):
    router = read(make, query=issubclass(make, QueryNorm))
    assert (router.form.name, router.num_shared_heads, router.top_k) == FORMS[make]
    assert (router.reason is None) == (router.form.name != "custom")


def test_logits_are_those_of_each_stage():
    router = read(TwoStage)
    inputs = (router.stage_logits, router.shared_logits, router.routed_logits)
    assert [logits.node.name for logits in inputs] == ["linear", "linear_1", "linear_2"]
    assert [logits.dim for logits in inputs] == [2, 2, 2]


def test_mask_of_norms_is_query_norm_only_where_the_query_makes_them():
    assert read(QueryNorm, query=True).form.name == "query_norm"
    assert read(QueryNorm).form.name == "mask"


@sampled(2)
@pytest.mark.parametrize("factor", [1 / 3, 2**0.5, 0.1, 2.5])
def test_scale_of_gates_is_as_exact_as_the_model(factor: float):
    class Scaled(nn.Module):
        """Runs in float32 alone, as zeros of that dtype are written into."""

        def __init__(self) -> None:
            super().__init__()
            self.to_routed = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            value, best = self.to_routed(x).softmax(-1).topk(3, dim=-1)
            value = value / value.sum(-1, keepdim=True) * (3 * factor)
            return torch.zeros(2, 5, 4).scatter(-1, best, value)

    router = read(Scaled)
    assert router.finish.factor == pytest.approx(factor, rel=2.0**-21)


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


def read_at_any_size(model: torch.nn.Module) -> Router:
    program = traced(model, [ModelInput("x", torch.ones(3, 7, 32), {0: "batch", 1: "seq"})])
    (gates,) = program.graph_module.graph.output_node().args[0]
    return read_router(gates, None, Constants(program))


def test_gates_of_learned_queries_are_known():
    model = Chosen()
    router = read_at_any_size(model)
    assert (router.form.name, router.num_shared_heads, router.top_k) == ("constant", 0, 2)
    torch.testing.assert_close(router.fixed_gates, model.gates(model.latents)[None])
    # Nothing is ranked at run time, so no flip may be excused as a tie.
    assert router.selection is None
    assert router.reason is None


def test_queries_that_an_input_changes_choose_at_run_time():
    router = read_at_any_size(Chosen(reads_input=True))
    assert router.form.name == "top_k"
    assert router.fixed_gates is None


def test_gates_that_positions_change_are_not_known():
    router = read_at_any_size(OpenBehind())
    assert (router.form.name, router.fixed_gates) == ("custom", None)
