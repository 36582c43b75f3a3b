"""Attention computes the tokens that are read, fused or written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from moh_deploy.frontend.normalize import normalize
from tests.frontend.normalize.test_join_parts import ARGUMENTS, Function, attended
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import nightly

MASK = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(9)) > -0.5


def first_of_flattened(q, k, v, a, b):
    return attended(q, k, v).flatten(2)[:, :2].sin()


def last_of_split(q, k, v, a, b):
    return attended(q, k, v).split([2, 3], 1)[1] * b[..., None]


def narrowed_with_a_mask(q, k, v, a, b):
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=MASK, scale=0.3)
    return y.narrow(2, 1, 2) * a.mT[..., None]


def with_a_mask_of_keys(q, k, v, a, b):
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=MASK[:, :1])
    return y[:, :, -2:] * a.mT[..., None]


def first_of_causal(q, k, v, a, b):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, :2] * a.mT[..., None]


def written_out(q, k, v, a, b):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.3 + MASK[:, :1]
    weights = scores.masked_fill(~MASK, -1e9).double().softmax(-1).float()
    return (weights @ v).transpose(1, 2)[:, 1:3] * a[..., None]


def heads_in_the_batch(q, k, v, a, b):
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.bmm(q, k.mT).view(2, 4, 5, 5).where(MASK, -1e9).view(8, 5, 5)
    return torch.bmm(scores.softmax(-1), v).view(2, 4, 5, 3)[:, :, :2] * a.mT[..., None]


def computed(function: Function) -> list[int]:
    """How many queries each attention, softmax and product has; results must be what they were."""
    program = normalize(plain_trace(function, *ARGUMENTS))
    torch.testing.assert_close(program.module()(*ARGUMENTS), function(*ARGUMENTS))
    names = ("scaled_dot_product_attention", "softmax", "einsum", "bmm", "matmul")
    found = [node for name in names for node in nodes(program, name)]
    return [int(node.meta["val"].shape[-2]) for node in found]


@pytest.mark.parametrize(
    ("function", "read"),
    [
        (first_of_flattened, 2),
        (last_of_split, 3),
        (narrowed_with_a_mask, 2),
        (with_a_mask_of_keys, 2),
        (first_of_causal, 2),
    ],
)
def test_queries_that_are_not_read_are_left_out(function: Function, read: int):
    assert set(computed(function)) == {read}


def last_of_causal(q, k, v, a, b):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, 2:] * b.mT[..., None]


def also_read_as_a_whole(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * a[..., None], y.sum()


def some_channels_are_read(q, k, v, a, b):
    return attended(q, k, v)[..., :2].sin()


def some_heads_are_read(q, k, v, a, b):
    return F.scaled_dot_product_attention(q, k, v)[:, :2].sin()


def behind_a_projection(q, k, v, a, b):
    return (attended(q, k, v).flatten(2) @ torch.ones(12, 3))[:, :2]


def with_weights_that_are_read(q, k, v, a, b):
    weights = (q @ k.mT).softmax(-1)
    return (weights @ v)[:, :, :2], weights


@pytest.mark.parametrize(
    "function",
    [
        last_of_causal,
        also_read_as_a_whole,
        some_channels_are_read,
        some_heads_are_read,
        behind_a_projection,
    ],
)
def test_attention_that_is_read_otherwise_stays(function: Function):
    assert set(computed(function)) == {5}


def over_queries(q, k, v, a, b):
    """As slots do, which compete for tokens."""
    return ((q @ k.mT).softmax(-2) @ v)[:, :, :2]


def of_itself(q, k, v, a, b):
    return (torch.einsum("bhqd,bhkd->bhqk", q, q).softmax(-1) @ v)[:, :, :2]


def test_written_out_attention_computes_the_tokens_that_are_read():
    assert set(computed(written_out)) == {2}
    assert set(computed(heads_in_the_batch)) == {2}
    # Softmax, scores, values.
    assert computed(with_weights_that_are_read) == computed(over_queries) == [5, 5, 2]
    assert computed(of_itself) == [2, 5, 2]


class PairsOfTokens(nn.Module):
    """Attends with a head for each pair of a first and a second tensor [n, S, D]."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = (x[:, None] * y).view(2, -1, 5, 3)
        attended = F.scaled_dot_product_attention(pairs, pairs, pairs)
        return attended.view(-1, y.shape[0], 5, 3)[:, :, :2]


@nightly
def test_attention_whose_result_has_a_part_of_unknown_size_stays():
    # x has 2n rows, attention 2 x (n m) heads, and no tensor n of anything.
    x, y = torch.randn(6, 5, 3), torch.randn(4, 5, 3)
    sizes = {0: 2 * Dim("n", max=9)}, {0: Dim("m", max=9)}
    program = normalize(torch.export.export(PairsOfTokens(), (x, y), dynamic_shapes=sizes))
    (attention,) = nodes(program, "scaled_dot_product_attention")
    assert attention.meta["val"].shape[-2] == 5
    torch.testing.assert_close(program.module()(x, y), PairsOfTokens()(x, y))
