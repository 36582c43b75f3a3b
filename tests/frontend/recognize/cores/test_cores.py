"""Attention in many words: what is read must compute what is written, or be refused."""

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from moh_deploy.frontend.fx.graph import nodes_that_depend_on
from moh_deploy.frontend.recognize.layer import Core
from moh_deploy.frontend.recognize.track import Tracker
from tests.frontend.recognize.cores.meaning import attend
from tests.frontend.traced import Values, plain_trace
from tests.nightly import sampled

B, H, S, T, D = 2, 4, 5, 7, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K, V = random(B, H, S, D), random(B, H, T, D, seed=1), random(B, H, T, D + 1, seed=2)
SQUARE = (Q, random(B, H, S, D, seed=1), random(B, H, S, D, seed=2))
GROUPED = (Q, random(B, 2, T, D, seed=1), random(B, 2, T, D, seed=2))
KEEP = random(B, 1, S, T, seed=3) > -0.5
BIAS = random(H, 1, T, seed=4)
PER_HEAD = random(H, 1, 1, seed=5)

sdpa = F.scaled_dot_product_attention
Attention = Callable[..., Tensor]


def cores_of(program: ExportedProgram) -> list[Core]:
    graph = program.graph
    dynamic = nodes_that_depend_on(graph, program.graph_signature.user_inputs)
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    tracker = Tracker(
        list(graph.nodes),
        dynamic,
        lambda node: program.constants.get(constants.get(node.name)),
    )
    found = [state.core for state in tracker.run().values() if state.stage == "output"]
    return list({core.output.node: core for core in found}.values())


def softmax(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


FUSED: dict[str, tuple[Attention, tuple[Tensor, ...]]] = {
    "plain": (sdpa, (Q, K, V)),
    "scale": (lambda q, k, v: sdpa(q, k, v, scale=0.3), (Q, K, V)),
    "causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), SQUARE),
    "causal_rectangle": (lambda q, k, v: sdpa(q, k, v, is_causal=True), (Q, K, V)),
    "bool_mask": (lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (Q, K, V, KEEP)),
    "bias": (lambda q, k, v, b: sdpa(q, k, v, attn_mask=b), (Q, K, V, BIAS)),
    "grouped": (lambda q, k, v: sdpa(q, k, v, enable_gqa=True), GROUPED),
    "one_key_head": (lambda q, k, v: sdpa(q, k, v), (Q, K[:, :1], V[:, :1])),
    "one_query": (lambda q, k, v: sdpa(q, k, v), (Q[:, :, :1], K, V)),
    "no_batch": (sdpa, (Q[0], K[0], V[0])),
    "five_dimensions": (sdpa, tuple(t.unflatten(1, (2, 2)) for t in (Q, K, V))),
}


def zeroed(scores: Tensor, mask: Tensor, v: Tensor) -> Tensor:
    """Weights of hidden keys are 0: of the first query, which sees no key, all of them."""
    keep = mask & (torch.arange(S) > 0)[:, None]
    weights = scores.masked_fill(~keep, -1e9).softmax(-1)
    return torch.where(keep, weights, 0.0) @ v


WRITTEN: dict[str, tuple[Attention, tuple[Tensor, ...]]] = {
    "matmul": (lambda q, k, v: softmax(q @ k.mT, v), (Q, K, V)),
    "divided": (lambda q, k, v: softmax(q @ k.transpose(2, 3) / math.sqrt(D), v), (Q, K, V)),
    "query_scaled": (lambda q, k, v: softmax((q * 0.5) @ k.mT, v), (Q, K, V)),
    "scaled_twice": (lambda q, k, v: softmax(q @ k.mT / 4 * 0.5, v), (Q, K, V)),
    "keys_first": (lambda q, k, v: softmax((k @ q.mT).mT, v), (Q, K, V)),
    "softmax_over_rows": (
        lambda q, k, v: torch.einsum("bhts,bhtd->bhsd", (k @ q.mT).softmax(-2), v),
        (Q, K, V),
    ),
    "values_first": (lambda q, k, v: (v.mT @ (q @ k.mT).softmax(-1).mT).mT, (Q, K, V)),
    "folded": (
        lambda q, k, v: torch.bmm(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v),
        (Q, K, V.flatten(0, 1)),
    ),
    "einsum": (
        lambda q, k, v: torch.einsum(
            "bhst,bhtd->bshd", torch.einsum("bshd,bhtd->bhst", q, k).softmax(-1), v
        ),
        (Q.transpose(1, 2).contiguous(), K, V),
    ),
    "products_and_sums": (
        lambda q, k, v: (
            ((q[:, :, :, None] * k[:, :, None]).sum(-1) * 0.5).softmax(-1).unsqueeze(-1)
            * v[:, :, None]
        ).sum(-2),
        (Q, K, V),
    ),
    "sums_that_keep_dimensions": (
        lambda q, k, v: (
            (q[:, :, :, None] * k[:, :, None]).sum(-1, keepdim=True).softmax(-2) * v[:, :, None]
        ).sum(3, keepdim=True)[:, :, :, 0],
        (Q, K, V),
    ),
    "grouped_einsum": (
        lambda q, k, v: torch.einsum(
            "bgrst,bgtd->bgrsd", torch.einsum("bgrsd,bgtd->bgrst", q, k).softmax(-1), v
        ),
        (Q.unflatten(1, (2, 2)), *GROUPED[1:]),
    ),
    "repeated_keys": (
        lambda q, k, v: softmax(
            q @ k.repeat_interleave(2, 1).mT, v[:, :, None].expand(B, 2, 2, T, D).flatten(1, 2)
        ),
        GROUPED,
    ),
    "bias": (lambda q, k, v, b: softmax(q @ k.mT * 0.5 + b, v), (Q, K, V, BIAS)),
    "bias_first": (lambda q, k, v, b: softmax(b + q @ k.mT, v), (Q, K, V, BIAS)),
    "bias_before_scale": (lambda q, k, v, b: softmax((q @ k.mT + b) * 0.5, v), (Q, K, V, BIAS)),
    "bias_subtracted": (lambda q, k, v, b: softmax(q @ k.mT - b, v), (Q, K, V, BIAS)),
    "bias_with_alpha": (
        lambda q, k, v, b: softmax(torch.add(q @ k.mT, b, alpha=3), v),
        (Q, K, V, BIAS),
    ),
    "two_biases": (lambda q, k, v, b: softmax(q @ k.mT + b + b[:1], v), (Q, K, V, BIAS)),
    "number_added": (lambda q, k, v: softmax(q @ k.mT + 3.0, v), (Q, K, V)),
    "masked_fill": (
        lambda q, k, v, m: softmax((q @ k.mT).masked_fill(~m, -torch.inf), v),
        (Q, K, V, KEEP),
    ),
    "masked_fill_then_bias": (
        lambda q, k, v, m, b: softmax((q @ k.mT).masked_fill(~m, -torch.inf) + b, v),
        (Q, K, V, KEEP, BIAS),
    ),
    "large_negative_fill": (
        lambda q, k, v, m: softmax((q @ k.mT).masked_fill(~m, -1e9), v),
        (Q, K, V, KEEP),
    ),
    "zeroed_again": (lambda q, k, v, m: zeroed(q @ k.mT, m, v), (Q, K, V, KEEP)),
    "zeroed_by_the_same_again": (
        lambda q, k, v, m: (
            torch.where(
                (m.float() == 0).logical_not(),
                (q @ k.mT).masked_fill(m.float() == 0, -torch.inf).softmax(-1),
                0.0,
            )
            @ v
        ),
        (Q, K, V, KEEP),
    ),
    "zeroed_by_a_product": (
        lambda q, k, v, m: ((q @ k.mT + (1 - m.float()) * -1e9).softmax(-1) * m.float()) @ v,
        (Q, K, V, KEEP),
    ),
    "where_keeps": (
        lambda q, k, v, m: softmax(torch.where(m, q @ k.mT, -torch.inf), v),
        (Q, K, V, KEEP),
    ),
    "where_drops": (
        lambda q, k, v, m: softmax(torch.where(m, -torch.inf, q @ k.mT), v),
        (Q, K, V, ~KEEP),
    ),
    "where_drops_to_a_computed_constant": (
        lambda q, k, v, m: softmax(
            torch.where(m, torch.ones_like(w := q @ k.mT) * (1 - 2**32), w), v
        ),
        (Q, K, V, ~KEEP),
    ),
    "filled_with_a_sum_of_constants": (
        lambda q, k, v, m: softmax(
            torch.where(m, q @ k.mT, torch.sub(torch.zeros(S, T), torch.ones(()), alpha=1e9)), v
        ),
        (Q, K, V, KEEP),
    ),
    "times_mask": (
        lambda q, k, v, m: softmax(q @ k.mT * m.to(q) - 1e10 * (1 - m.to(q)), v),
        (Q, K, V, KEEP),
    ),
    "times_mask_before_its_complement_was_cut": (
        lambda q, k, v, m: softmax(
            ((1.0 - m.to(q)) * -1e4)[:, None] + m.to(q)[:, None] * (q @ k.mT), v
        ),
        (Q, K, V, KEEP[:, 0]),
    ),
    "times_bool_mask": (
        lambda q, k, v, m: softmax((q @ k.mT * m + ~m * -1e9) * 0.5, v),
        (Q, K, V, KEEP),
    ),
    "times_triangle": (
        lambda q, k, v: softmax((q @ k.mT) * (m := torch.ones(S, S).tril()) + (1 - m) * -2e4, v),
        SQUARE,
    ),
    "times_mask_then_bias": (
        lambda q, k, v, m, b: softmax((q @ k.mT + b) * m.to(q) - (1 - m.to(q)) / 1e-20 + b, v),
        (Q, K, V, KEEP, BIAS),
    ),
    "temperature_per_head": (
        lambda q, k, v, t: softmax(q @ k.mT * t.exp(), v),
        (Q, K, V, PER_HEAD),
    ),
    "divided_by_temperature": (
        lambda q, k, v, t: softmax(q @ k.mT / t.exp(), v),
        (Q, K, V, PER_HEAD),
    ),
    "float32_softmax": (
        lambda q, k, v: (q @ k.mT).float().softmax(-1).to(v.dtype) @ v,
        (Q, K, V),
    ),
    "dropout_in_eval": (lambda q, k, v: softmax(F.dropout(q @ k.mT, 0.5, False), v), (Q, K, V)),
    "cosine": (
        lambda q, k, v: softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 9, v),
        (Q, K, V),
    ),
}

FORMS = {f"fused_{name}": case for name, case in FUSED.items()} | WRITTEN


@sampled(8)
@pytest.mark.parametrize("name", FORMS)
def test_what_is_read_computes_what_is_written(name: str):
    written, arguments = FORMS[name]
    program = plain_trace(written, *arguments)
    (core,) = cores_of(program)
    assert core.obstacles == ()
    values = Values(program, *arguments).of
    torch.testing.assert_close(attend(core, values), values[core.output.node], rtol=1e-6, atol=1e-6)


REFUSED: dict[str, tuple[str, Attention, tuple[Tensor, ...]]] = {
    "soft_cap": (
        "tanh.* between the scores",
        lambda q, k, v: softmax((q @ k.mT).tanh() * 5, v),
        (Q, K, V),
    ),
    "scaled_by_key": (
        "differently for each key",
        lambda q, k, v, b: softmax(q @ k.mT * b, v),
        (Q, K, V, BIAS),
    ),
    "divides_by_the_scores": (
        "divides by the scores",
        lambda q, k, v, b: softmax(b / (q @ k.mT), v),
        (Q, K, V, BIAS),
    ),
    "subtracts_the_scores": (
        "subtracts the scores",
        lambda q, k, v, b: softmax(b - q @ k.mT, v),
        (Q, K, V, BIAS),
    ),
    "mild_fill": (
        "fills masked scores with -5",
        lambda q, k, v, m: softmax((q @ k.mT).masked_fill(~m, -5.0), v),
        (Q, K, V, KEEP),
    ),
    "fill_computed_and_mild": (
        "fills masked scores with -3",
        lambda q, k, v, m: softmax(torch.where(m, q @ k.mT, torch.ones(S, T) * 2 - 5), v),
        (Q, K, V, KEEP),
    ),
    "fill_of_more_than_constants": (
        "fills masked scores with a tensor",
        lambda q, k, v, m: softmax(
            torch.where(m, w := q @ k.mT, torch.ones_like(w) * q[:1, :1, :1, :1]), v
        ),
        (Q, K, V, KEEP),
    ),
    "fill_made_mild_by_the_scale": (
        "fills masked scores",
        lambda q, k, v, m: softmax((q @ k.mT).masked_fill(~m, -2e4) * 1e-3, v),
        (Q, K, V, KEEP),
    ),
    "bias_under_a_temperature": (
        "after a bias was added",
        lambda q, k, v, b, t: softmax((q @ k.mT + b) * t, v),
        (Q, K, V, BIAS, PER_HEAD),
    ),
    "times_mask_of_any_numbers": (
        "compute it as a bool",
        lambda q, k, v, m: softmax(q @ k.mT * m - 1e10 * (1 - m), v),
        (Q, K, V, KEEP.double()),
    ),
    "times_mask_that_hides_nothing": (
        "makes masked scores 0",
        lambda q, k, v, m, b: softmax(q @ k.mT * m + b, v),
        (Q, K, V, KEEP, BIAS),
    ),
    "times_mask_and_a_mild_complement": (
        "makes masked scores 0",
        lambda q, k, v, m: softmax(q @ k.mT * m - 5 * (1 - m.to(q)), v),
        (Q, K, V, KEEP),
    ),
    "times_mask_and_another_one's_complement": (
        "makes masked scores 0",
        lambda q, k, v, m, n: softmax(q @ k.mT * m - 1e10 * (1 - n.to(q)), v),
        (Q, K, V, KEEP, ~KEEP),
    ),
    "times_mask_and_what_hides_the_kept": (
        "makes masked scores 0",
        lambda q, k, v, m: softmax(q @ k.mT * m - 1e10 * m, v),
        (Q, K, V, KEEP),
    ),
    "divided_by_mask": (
        "compute it as a bool",
        lambda q, k, v, m: softmax(q @ k.mT / m - 1e10 * (1 - m.to(q)), v),
        (Q, K, V, KEEP),
    ),
    "sink": (
        "no products with keys",
        lambda q, k, v: torch.cat([q @ k.mT, q.sum(-1, True)], -1).softmax(-1)[..., :-1] @ v,
        (Q, K, V),
    ),
    "weights_scaled": (
        "changes the attention weights after their softmax",
        lambda q, k, v: ((q @ k.mT).softmax(-1) * 0.5) @ v,
        (Q, K, V),
    ),
    "weights_masked_by_the_input": (
        "changes the attention weights",
        lambda q, k, v, m: ((q @ k.mT).softmax(-1) * m.to(v)) @ v,
        (Q, K, V, KEEP),
    ),
    "zeroed_by_another_mask": (
        "changes the attention weights",
        lambda q, k, v, m, n: torch.where(n, (q @ k.mT).masked_fill(~m, -1e9).softmax(-1), 0.0) @ v,
        (Q, K, V, KEEP, ~KEEP),
    ),
    "zeroed_where_kept": (
        "changes the attention weights",
        lambda q, k, v, m: torch.where(~m, (q @ k.mT).masked_fill(~m, -1e9).softmax(-1), 0.0) @ v,
        (Q, K, V, KEEP),
    ),
    "values_of_each_query": (
        "values of its own",
        lambda q, k, v: torch.einsum("bhst,bhstd->bhsd", (q @ k.mT).softmax(-1), v),
        (Q, K, random(B, H, S, T, D)),
    ),
    "difference": (
        "changes the attention weights after|combines",
        lambda q, k, v: ((q @ k.mT).softmax(-1) - (k[:, :, :S] @ k.mT).softmax(-1)) @ v,
        (Q, K, V),
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_attention_is_refused_with_its_reason(name: str):
    reason, written, arguments = REFUSED[name]
    program = plain_trace(written, *arguments)
    (core,) = cores_of(program)
    assert re.search(reason, core.obstacles[0])


NO_ATTENTION: dict[str, Attention] = {
    "linear": lambda q, k, v: (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v),
    "sigmoid": lambda q, k, v: (q @ k.mT).sigmoid() @ v,
    "softmax_of_the_query": lambda q, k, v: q.softmax(-1) @ v[:, :, :D],
    "softmax_over_queries": lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
    "weights_alone": lambda q, k, v: (q @ k.mT).softmax(-1),
    "fused_without_heads": lambda q, k, v: sdpa(q[0, 0], k[0, 0], v[0, 0]),
}


@sampled(3)
@pytest.mark.parametrize("name", NO_ATTENTION)
def test_no_attention_is_seen_where_there_is_none(name: str):
    assert cores_of(plain_trace(NO_ATTENTION[name], Q, K, V)) == []


def test_softmax_of_a_constant_table_is_no_attention():
    table = random(S, T)
    assert cores_of(plain_trace(lambda v: (table @ table.mT).softmax(-1) @ v, V[:, :, :S])) == []
