from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.measured_rounding import are_the_best
from moh_deploy.frontend.prove.record import LayerRecord, distance, record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, insert
from moh_deploy.frontend.rewrite.rewritten import view_attention
from moh_deploy.package import NUMBERS
from tests.frontend.traced import plain_trace
from tests.nightly import sampled
from tests.small_moh import SmallMoH, build

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def inserted(model: nn.Module, x: Tensor = X) -> tuple[ExportedProgram, Rewrite]:
    program = normalize(plain_trace(model, x))
    (rewrite,) = insert(program, recognize(program))
    assert rewrite.reason is None
    return program, rewrite


def layer_of(program: ExportedProgram, rewrite: Rewrite, x: Tensor = X) -> LayerRecord:
    program.graph_module.recompile()
    (layer,) = record(program, [rewrite], [x]).layers
    return layer


def test_outputs_and_gates_are_those_of_the_original():
    model = build().eval()
    program, rewrite = inserted(model)
    recording = record(program, [rewrite], [X])
    torch.testing.assert_close(recording.outputs, [model(X)])
    torch.testing.assert_close(recording.layers[0].gates, model.gates(X))
    assert recording.layers[0].disagreement is None


def test_margin_is_last_chosen_minus_first_unchosen():
    model = build().eval()
    scores = model.routed(X).softmax(-1)
    expected = (scores[..., 0] - scores[..., 1]).abs()
    torch.testing.assert_close(layer_of(*inserted(model)).margins, expected)


def test_margin_of_two_chosen_heads_is_that_of_the_second():
    class TopTwo(SmallMoH):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(8, 4)

        def gates(self, x):
            p = self.router(x).softmax(-1)
            p = p * F.one_hot(p.topk(2, dim=-1).indices, 4).sum(-2)
            return p / p.sum(-1, keepdim=True) * 2

    model = TopTwo().eval()
    best = model.router(X).softmax(-1).sort(-1, descending=True).values
    layer = layer_of(*inserted(model))
    torch.testing.assert_close(layer.margins, best[..., 1] - best[..., 2])


def test_margin_is_infinite_where_nothing_is_chosen():
    class WeightedHeads(SmallMoH):
        def gates(self, x):
            return torch.cat([self.shared(x), self.routed(x)], dim=-1).softmax(-1) * 4

    torch.manual_seed(0)
    assert layer_of(*inserted(WeightedHeads().eval())).margins.isinf().all()


def test_recording_twice_gives_the_same():
    program, rewrite = inserted(build())
    first, second = layer_of(program, rewrite), layer_of(program, rewrite)
    assert torch.equal(first.gates, second.gates)


# What goes wrong in rewriting must show in the record.


def change(node: torch.fx.Node, **changed: object) -> None:
    names = [argument.name for argument in node.target._schema.arguments]
    assert changed.keys() <= set(names)
    node.args = tuple(changed.get(name, old) for name, old in zip(names, node.args, strict=True))


def wrong_scale(rewrite: Rewrite) -> None:
    change(rewrite.attention, scale=rewrite.attention.args[7] * 1.05)


def swapped_query_and_key(rewrite: Rewrite) -> None:
    query, key = rewrite.attention.args[:2]
    change(rewrite.attention, Q=key, K=query)


def causal(rewrite: Rewrite) -> None:
    change(rewrite.attention, is_causal=True)


def swapped_logits(rewrite: Rewrite) -> None:
    routed, shared, _ = rewrite.routed.args[:3]
    change(rewrite.routed, routed_logits=shared, shared_logits=routed)


def stages_from_the_shared_logits(rewrite: Rewrite) -> None:
    change(rewrite.routed, stage_logits=rewrite.routed.args[1])


def every_head(rewrite: Rewrite) -> None:
    change(rewrite.routed, top_k=2)


def ungated(rewrite: Rewrite) -> None:
    graph = rewrite.gates.graph
    with graph.inserting_before(rewrite.attention):
        ones = graph.call_function(torch.ops.aten.ones_like.default, (rewrite.attention.args[3],))
    change(rewrite.attention, gates=ones)


def not_a_number(rewrite: Rewrite) -> None:
    change(rewrite.attention, scale=float("nan"))


FAULTS = {
    wrong_scale: "MoHAttention differs from the original by",
    swapped_query_and_key: "MoHAttention differs",
    causal: "MoHAttention differs",
    ungated: "MoHAttention differs",
    not_a_number: "MoHAttention is not finite where the original is",
    swapped_logits: "MoHRouter differs",
    stages_from_the_shared_logits: "MoHRouter differs",
    every_head: "MoHRouter differs",
}


@sampled(3)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_in_the_rewriting_is_a_disagreement(fault):
    program, rewrite = inserted(build())
    fault(rewrite)
    assert FAULTS[fault] in layer_of(program, rewrite).disagreement


def test_near_tie_that_opens_the_same_heads_hides_no_wrong_attention():
    """In bfloat16 nearly every run has one."""
    x = (X / 2).bfloat16()
    program, rewrite = inserted(build().bfloat16(), x)
    assert layer_of(program, rewrite, x).margins.min() < 0.06
    change(rewrite.attention, scale=rewrite.attention.args[7] * 4)
    assert "MoHAttention differs" in layer_of(program, rewrite, x).disagreement


class EveryBestHead(SmallMoH):
    """Chooses as the published router does, but both heads where they tie."""

    def gates(self, x):
        p = self.routed(x).softmax(-1)
        p = p * (p >= p.topk(1, dim=-1).values)
        p = p / p.sum(-1, keepdim=True)
        first, second = (self.stage(x).softmax(-1) * 2).chunk(2, dim=-1)
        return torch.cat([self.shared(x).softmax(-1) * 2 * first, p * second], dim=-1)


def test_tokens_with_a_tie_may_choose_other_heads():
    model = EveryBestHead()
    nn.init.zeros_(model.routed.weight)
    program, rewrite = inserted(model)
    layer = layer_of(program, rewrite)
    assert torch.equal(layer.margins, torch.zeros(2, 5))
    assert bool((layer.gates[..., 2:] > 0).all())
    assert layer.disagreement is None


def test_tokens_without_a_tie_are_compared_beside_one_that_has_it():
    program, rewrite = inserted(build())
    tied = X.clone()
    tied[0, 0] = 0.0
    assert layer_of(program, rewrite, tied).disagreement is None
    every_head(rewrite)
    assert "MoHRouter differs" in layer_of(program, rewrite, tied).disagreement


def test_scores_and_the_fingerprint_of_the_attention_are_recorded():
    model = build().eval()
    program = normalize(plain_trace(model, X))
    rewrites = view_attention(program, insert(program, recognize(program)))
    (layer,) = record(program, rewrites, [X]).layers
    assert layer.scores is not None
    expected = model.routed(X).softmax(-1).detach().numpy()
    np.testing.assert_allclose(layer.scores, expected, rtol=1e-5)
    assert layer.attention.shape == (2, 5, NUMBERS)


def test_scores_that_do_not_decide_alone_are_not_recorded():
    ranked = torch.tensor([[[0.5, 0.3, 0.2]]])
    assert are_the_best(ranked, torch.tensor([[[True, True, False]]]), 2)
    assert are_the_best(ranked, torch.tensor([[[True, False, False]]]), 2)  # a gate may be 0
    assert not are_the_best(ranked, torch.tensor([[[True, False, True]]]), 2)
    assert not are_the_best(ranked, torch.tensor([[[True, True, True]]]), 2)
    assert not are_the_best(ranked * float("nan"), torch.tensor([[[True, True, False]]]), 2)


def test_distance_leaves_out_what_is_not_finite_in_the_original():
    expected, every = torch.tensor([1.0, float("nan"), float("inf"), -4.0]), torch.ones(4) > 0
    assert distance(expected, torch.tensor([1.5, 7.0, float("nan"), -4.0]), every) == (0.5, 4.0)
    got = torch.tensor([1.5, 7.0, 7.0, float("nan")])
    assert distance(expected, got, every) == (float("inf"), 0.0)
    assert distance(expected[1:3], torch.zeros(2), every[1:3]) == (0.0, 0.0)
    assert distance(expected[:1], torch.tensor([float("inf")]), every[:1]) == (float("inf"), 0.0)


def test_distance_is_that_of_the_elements_that_count():
    expected, got = torch.tensor([1.0, 2.0, 8.0]), torch.tensor([1.0, 2.5, float("nan")])
    assert distance(expected, got, torch.tensor([True, True, False])) == (0.5, 2.0)
    assert distance(expected, got, torch.tensor([True, False, False])) == (0.0, 1.0)


def test_masks_are_no_size_that_excuses_the_distance_of_others():
    expected, every = torch.tensor([-1e9, 2.0, 1.0]), torch.ones(3, dtype=torch.bool)
    assert distance(expected, expected + torch.tensor([0, 0, 0.5]), every) == (0.5, 2.0)
    error, _ = distance(expected, torch.tensor([-1e9 + 64, 2.0, 1.0]), every)
    assert 0 < error < 1e-6
