from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.graph import op, rank, tensor
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, insert
from tests.frontend.traced import Values, plain_trace

B, H, S, T, D = 2, 4, 5, 7, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, MEMORY = random(B, S, H * D), random(B, T, H * D, seed=1)
GATES = random(B, S, H, seed=2).relu()
KEEP = random(B, 1, S, T, seed=3) > -0.5
BIAS = random(H, 1, T, seed=4)
LOWEST = torch.finfo(torch.float32).min

sdpa = F.scaled_dot_product_attention


def heads(x: Tensor, count: int = H) -> Tensor:
    """[B, S, H*D] to [B, H, S, D]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def gated(y: Tensor, gates: Tensor) -> Tensor:
    """Gate and merge an attention output [B, H, S, D]."""
    return (y.transpose(1, 2) * gates[..., None]).flatten(2) * 1.0


def rewrite(model: Callable[..., Tensor], *arguments: Tensor) -> tuple[Rewrite, Values]:
    program = plain_trace(model, *arguments)
    (found,) = insert(program, recognize(program))
    return found, Values(program, *arguments)


def attention(model: Callable[..., Tensor], *arguments: Tensor) -> dict[str, object]:
    """The arguments of the MoHAttention, which must compute what the model does."""
    found, values = rewrite(model, *arguments)
    assert found.reason is None or "router" in found.reason
    assert found.replacement is not None
    torch.testing.assert_close(values.of[found.replacement], values.of[found.layer.node])
    names = [argument.name for argument in found.attention.target._schema.arguments]
    return dict(zip(names, found.attention.args, strict=True))


def test_plain_attention_reads_the_projections_as_they_are():
    node = attention(lambda x, m, g: gated(sdpa(heads(x), heads(m), heads(m)), g), X, MEMORY, GATES)
    query, key = node["Q"], node["K"]
    assert (query.op, key.op) == ("placeholder", "placeholder")
    assert node["attn_mask"] is None
    assert (node["q_num_heads"], node["kv_num_heads"], node["is_causal"]) == (H, H, False)
    assert node["scale"] == pytest.approx(D**-0.5)


def test_packed_output_is_not_rearranged():
    found, _ = rewrite(
        lambda x, m, g: gated(sdpa(heads(x), heads(m), heads(m)), g), X, MEMORY, GATES
    )
    assert rank(found.attention) == 3
    between, node = [], found.replacement
    while node is not found.attention:
        between.append(op(node))
        node = node.args[0]
    assert "permute" not in between
    assert "transpose" not in between


def test_one_projection_is_cut_without_rearranging():
    def model(x, g):
        q, k, v = x.unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        return gated(sdpa(q, k, v), g)

    node = attention(model, random(B, S, 3 * H * D), GATES)
    cuts = [node[name] for name in "QKV"]
    assert [op(cut) for cut in cuts] == ["slice"] * 3
    assert [cut.args[1:] for cut in cuts] == [(2, 0, 12), (2, 12, 24), (2, 24, 36)]


def test_queries_that_are_read_by_others_stay_per_head():
    def model(x, m, g):
        q, k = F.normalize(heads(x), dim=-1), F.normalize(heads(m), dim=-1)
        return gated(sdpa(q, k, k), g + q.sum(dim=-1).mT.relu() + k.sum())

    node = attention(model, X, MEMORY, GATES)
    assert [rank(node[name]) for name in "QKV"] == [4, 4, 4]


def test_scale_is_the_product_of_all_scales():
    def model(x, m, g):
        return gated((heads(x) @ heads(m).mT / 4 * 0.5).softmax(-1) @ heads(m), g)

    assert attention(model, X, MEMORY, GATES)["scale"] == pytest.approx(0.125)


def test_temperature_of_each_head_scales_the_query():
    def model(x, m, g, t):
        return gated((heads(x) @ heads(m).mT / t.exp()).softmax(-1) @ heads(m), g)

    found, _ = rewrite(model, X, MEMORY, GATES, random(H, 1, 1))
    query = found.attention.args[0]
    assert (op(query), op(query.args[0])) == ("flatten", "div")


def test_grouped_heads_are_counted_not_copied():
    def model(x, m, g):
        return gated(sdpa(heads(x), heads(m, 2), heads(m, 2), enable_gqa=True), g)

    node = attention(model, X, random(B, T, 2 * D), GATES)
    assert node["kv_num_heads"] == 2
    assert node["K"].op == "placeholder"


def test_repeated_heads_are_counted_not_copied():
    def model(x, m, g):
        wide = heads(m, 2).repeat_interleave(2, dim=1)
        return gated((heads(x) @ wide.mT).softmax(-1) @ wide, g)

    assert attention(model, X, random(B, T, 2 * D), GATES)["kv_num_heads"] == 2


def test_interleaved_heads_are_not_taken_for_groups():
    """`repeat` copies the heads in another order than groups have."""

    def model(x, m, g):
        wide = heads(m, 2).repeat(1, 2, 1, 1)
        return gated((heads(x) @ wide.mT).softmax(-1) @ wide, g)

    assert attention(model, X, random(B, T, 2 * D), GATES)["kv_num_heads"] == H


def test_values_may_be_wider_than_keys():
    def model(x, m, v, g):
        return gated(sdpa(heads(x), heads(m), heads(v)), g)

    found, _ = rewrite(model, X, MEMORY, random(B, T, H * 5, seed=8), GATES)
    assert tensor(found.attention).shape[-1] == H * 5


def mask_of(model: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The mask of a MoHAttention, which must compute what the model does."""
    node = attention(model, *arguments)["attn_mask"]
    assert isinstance(node, Node)
    return tensor(node)


def scores(x: Tensor, m: Tensor) -> Tensor:
    return heads(x) @ heads(m).mT


def attended(weighed: Tensor, m: Tensor, g: Tensor) -> Tensor:
    return gated(weighed.softmax(-1) @ heads(m), g)


def times_mask(x, m, g, keep):
    hidden = scores(x, m) * keep.float() - 1e4 * (1 - keep.float())
    return attended(hidden, m, g)


def two_bool_masks(x, m, g, keep):
    hidden = scores(x, m).masked_fill(~keep, -torch.inf)
    triangle = torch.ones(S, T, dtype=torch.bool).tril(2)
    return attended(torch.where(triangle, hidden, -torch.inf), m, g)


NOT_ROW_1, NOT_ROW_2, NONE = KEEP.clone(), KEEP.clone(), torch.zeros_like(KEEP)
NOT_ROW_1[0, 0, 1] = False
NOT_ROW_2[0, :, 2] = False  # whose weights are equal, in both
OTHER = ~KEEP[0, 0] & (torch.arange(T) > 2)
FIRST_KEY = KEEP | (torch.arange(T) == 0)  # else, minus infinity alone
BLIND, CAUSAL = torch.zeros(S, T, dtype=torch.bool), torch.ones(S, T, dtype=torch.bool).tril()


def padding(value: float) -> Tensor:
    """Added to the first three keys of the first sequence."""
    added = torch.zeros(B, 1, 1, T)
    added[0, ..., :3] = value
    return added


def two_fills(first: float, last: float) -> Callable[..., Tensor]:
    def model(x, m, g, keep, other):
        hidden = torch.where(other, scores(x, m), first)
        return attended(hidden.masked_fill(~keep, last), m, g)

    return model


def fill_then_add(fill: float) -> Callable[..., Tensor]:
    return lambda x, m, g, keep, added: attended(
        torch.where(keep, scores(x, m), fill) + added, m, g
    )


MASKS: dict[str, tuple[torch.dtype, Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "bool_mask": (
        torch.bool,
        lambda x, m, g, keep: gated(sdpa(heads(x), heads(m), heads(m), attn_mask=keep), g),
        (KEEP,),
    ),
    "fill": (
        torch.bool,
        lambda x, m, g, keep: attended(scores(x, m).masked_fill(~keep, -torch.inf), m, g),
        (KEEP,),
    ),
    "two_bool_masks": (torch.bool, two_bool_masks, (KEEP,)),
    # Added, so that rows without keys stay finite.
    "finite_fill": (
        torch.float32,
        lambda x, m, g, keep: attended(scores(x, m).masked_fill(~keep, -1e9), m, g),
        (NOT_ROW_1,),
    ),
    "product_with_a_mask": (torch.float32, times_mask, (NOT_ROW_2,)),
    "bias_and_fill": (
        torch.float32,
        lambda x, m, g, keep, bias: attended(
            (scores(x, m) + bias).masked_fill(~keep, -torch.inf), m, g
        ),
        (KEEP, BIAS),
    ),
    # A query without any key weighs all alike, those that both masks hide as well.
    "two_finite_fills": (torch.float32, two_fills(-1e9, -1e9), (KEEP, OTHER)),
    "higher_fill_first": (torch.float32, two_fills(-1e4, -1e9), (FIRST_KEY, BLIND)),
    "lower_fill_first": (torch.float32, two_fills(-1e9, -1e4), (FIRST_KEY, BLIND)),
    "fill_then_infinity": (torch.float32, two_fills(-1e9, -torch.inf), (FIRST_KEY, BLIND)),
    "fill_overwrites_what_was_added": (
        torch.float32,
        lambda x, m, g, keep, added: attended(
            (scores(x, m) + added).masked_fill(~keep, -1e9), m, g
        ),
        (NONE, padding(LOWEST)),
    ),
    # What is added to a fill hides what the fill leaves: the first queries see no other key.
    "fill_then_higher": (torch.float32, fill_then_add(-1e9), (CAUSAL, padding(-1e4))),
    "lowest_twice": (torch.float32, fill_then_add(LOWEST), (CAUSAL, padding(LOWEST))),
    "lowest_then_higher": (torch.float32, fill_then_add(LOWEST), (CAUSAL, padding(-1e4))),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_become_one_that_hides_as_the_model_does(name: str):
    dtype, model, masks = MASKS[name]
    assert mask_of(model, X, MEMORY, GATES, *masks).dtype == dtype


def test_bias_after_a_scale_is_scaled_with_it():
    def model(x, m, g, bias):
        return attended((scores(x, m) + bias) * 0.5, m, g)

    assert mask_of(model, X, MEMORY, GATES, BIAS).shape == (1, H, 1, T)


@pytest.mark.parametrize("fill", [-1e4, -torch.inf])
def test_finite_fill_beside_an_added_mask_is_named(fill):
    def model(x, m, g, keep, bias):
        scores = (heads(x) @ heads(m).mT).masked_fill(~keep, fill) + bias * 2
        return gated(scores.softmax(-1) @ heads(m), g)

    found, _ = rewrite(model, X, MEMORY, GATES, KEEP, BIAS)
    said = found.layer.core.scores.mixed_masks
    assert ("some by -10000 and others by what mul (" in said) == (fill == -1e4)
    assert bool(said) == (fill == -1e4)


def test_causal_square_is_an_attribute():
    node = attention(
        lambda x, g: gated(sdpa(heads(x), heads(x), heads(x), is_causal=True), g), X, GATES
    )
    assert node["is_causal"] is True
    assert node["attn_mask"] is None


def test_causal_rectangle_is_a_mask_since_torch_counts_from_the_first_key():
    def model(x, m, g):
        return gated(sdpa(heads(x), heads(m), heads(m), is_causal=True), g)

    node = attention(model, X, MEMORY, GATES)
    assert node["is_causal"] is False
    assert tensor(node["attn_mask"]).shape == (S, T)


def test_gates_of_another_dtype_are_cast():
    found, values = rewrite(
        lambda x, g: gated(sdpa(heads(x), heads(x), heads(x)), g.to(torch.float32)),
        X,
        (GATES > 0).to(torch.int64),
    )
    assert tensor(found.attention.args[3]).dtype == torch.float32
    torch.testing.assert_close(values.of[found.replacement], values.of[found.layer.node])


def test_queries_with_keys_of_their_own_are_attentions_of_one_query_each():
    def model(x, k, v, g):
        scores = torch.einsum("bhsd,bhstd->bhst", heads(x), k)
        return gated(torch.einsum("bhst,bhtd->bhsd", scores.softmax(-1), v), g)

    node = attention(model, X, random(B, H, S, T, D), random(B, H, T, D), GATES)
    assert tensor(node["Q"]).shape == (B * S, H, 1, D)


def test_refused_layer_still_has_its_gates():
    def model(x, g):
        y = (heads(x) @ heads(x).mT).tanh().softmax(-1) @ heads(x)
        return gated(y, g)

    found, values = rewrite(model, X, GATES)
    assert found.attention is None
    assert "tanh" in found.reason
    assert torch.equal(values.of[found.gates], GATES)
