from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.plain_attention import is_attention
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

# Queries, keys and values [B, H, S, D], gates of two tokens and of three [B, S, H].
ARGUMENTS = tuple(
    torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(2, 4, 5, 3)] * 3 + [(2, 2, 4), (2, 3, 4)])
)
Function = Callable[..., object]


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def by_slices(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * a[..., None], y[:, 2:] * b[..., None]


def by_slices_from_the_end(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, -3:] * b[..., None], y[:, :-3] * a[..., None]


def by_split(q, k, v, a, b):
    first, second = attended(q, k, v).split([2, 3], 1)
    return torch.einsum("bsh,bshd->bshd", a, first), second * b.unsqueeze(-1)


def written_out(q, k, v, a, b):
    y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)
    return y[:, :2] * a[..., None], y[:, 2:] * b[..., None]


def heads_first(q, k, v, a, b):
    y = F.scaled_dot_product_attention(q, k, v)
    return y[:, :, :2] * a.mT[..., None], y[:, :, 2:] * b.mT[..., None]


def behind_a_transposition(q, k, v, a, b):
    y = F.scaled_dot_product_attention(q, k, v)
    first, second = y[:, :, :2].transpose(1, 2), y[:, :, 2:].transpose(1, 2)
    return first * a[..., None], second * b[..., None]


def split_into_heads_again(q, k, v, a, b):
    first, second = attended(q, k, v).flatten(2).split([2, 3], 1)
    return (
        first.unflatten(-1, (4, 3)) * a[..., None],
        (second.view(2, 3, 4, 3) * b[..., None]).flatten(2),
    )


def gates_of_the_second_are_made_late(q, k, v, a, b):
    y = attended(q, k, v)
    first = (y[:, :2] * a[..., None]).flatten(2).sin()
    return first, y[:, 2:] * b.softmax(-1)[..., None]


def products(function: Function) -> int:
    """The products with gates that are left; results must be what they were."""
    program = normalize(plain_trace(function, *ARGUMENTS))
    torch.testing.assert_close(program.module()(*ARGUMENTS), function(*ARGUMENTS))
    return len(nodes(program, "mul")) + len(nodes(program, "einsum"))


@sampled(4)
@pytest.mark.parametrize(
    "function",
    [
        by_slices,
        by_slices_from_the_end,
        by_split,
        written_out,
        heads_first,
        behind_a_transposition,
        split_into_heads_again,
        gates_of_the_second_are_made_late,
    ],
)
def test_parts_that_are_gated_apart_are_gated_as_a_whole(function: Function):
    assert products(function) == 1


def the_second_hangs_on_the_first(q, k, v, a, b):
    y = attended(q, k, v)
    first = y[:, :2] * a[..., None]
    return first, y[:, 2:] * (b + first.mean())[..., None]


def a_token_is_left_out(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * a[..., None], y[:, 3:] * b[:, 1:, :, None]


def a_token_is_in_both(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :3] * b[..., None], y[:, 2:] * b[..., None]


def all_are_read_ungated(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * a[..., None], y[:, 2:] * b[..., None], y


def a_part_is_read_ungated(q, k, v, a, b):
    first, second = attended(q, k, v).split([2, 3], 1)
    return first * a[..., None], second * b[..., None], second


def channels_are_weighed(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * v[:, 0, :2, None], y[:, 2:] * v[:, 0, 2:, None]


def laid_out_differently(q, k, v, a, b):
    y = F.scaled_dot_product_attention(q, k, v)
    return y[:, :, :2].transpose(1, 2) * a[..., None], y[:, :, 2:] * b.mT[..., None]


def one_number_for_all_tokens(q, k, v, a, b):
    y = attended(q, k, v)
    return y[:, :2] * a[:, :1, :, None], y[:, 2:] * b[:, :1, :, None]


def no_attention(q, k, v, a, b):
    y = (q + k).transpose(1, 2)
    return y[:, :2] * a[..., None], y[:, 2:] * b[..., None]


@sampled(4)
@pytest.mark.parametrize(
    "function",
    [
        the_second_hangs_on_the_first,
        a_token_is_left_out,
        a_token_is_in_both,
        all_are_read_ungated,
        a_part_is_read_ungated,
        channels_are_weighed,
        laid_out_differently,
        one_number_for_all_tokens,
        no_attention,
    ],
)
def test_parts_of_another_kind_stay(function: Function):
    assert products(function) == 2


# Gates of heads come first, gates of channels behind them.


# Queries, keys, values and gates of channels [B, H, S, D], gates [B, H, S].
CHANNEL_ARGUMENTS = tuple(
    torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(2, 4, 5, 3)] * 4 + [(2, 4, 5)])
)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def partners(function: Function) -> list[int]:
    """The last dimension of what each attention is multiplied with; results are what they were."""
    program = normalize(plain_trace(function, *CHANNEL_ARGUMENTS))
    torch.testing.assert_close(
        program.module()(*CHANNEL_ARGUMENTS),
        function(*CHANNEL_ARGUMENTS),
    )
    products = [node for node in nodes(program, "mul") if any(map(is_attention, node.args))]
    return [
        int(arg.meta["val"].shape[-1])
        for node in products
        for arg in node.args
        if not is_attention(arg)
    ]


@sampled(2)
@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, c, g: sdpa(q, k, v) * c * g[..., None],
        lambda q, k, v, c, g: g[..., None] * (c.sigmoid() * sdpa(q, k, v)),
        lambda q, k, v, c, g: sdpa(q, k, v) * c[0, 0, 0] * g[..., None],
        lambda q, k, v, c, g: ((q @ k.mT).softmax(-1) @ v) * c * g[..., None],
        lambda q, k, v, c, g: sdpa(q, k, v) * g[..., None] * c,
    ],
)
def test_heads_are_gated_before_channels(function: Function):
    assert partners(function) == [1]


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, c, g: sdpa(q, k, v) * c * c.sin(),
        lambda q, k, v, c, g: ((y := sdpa(q, k, v) * c), y * g[..., None]),
    ],
)
def test_other_products_stay(function: Function):
    assert partners(function) == [3]
