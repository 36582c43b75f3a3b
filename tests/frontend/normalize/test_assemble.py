"""Tensors that are filled part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import sampled

# Three parts [B, S, D].
PARTS = tuple(
    torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
)
Model = Callable[..., Tensor]


def slices(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    for i, part in enumerate(parts):
        out[..., 4 * i : 4 * i + 4] = part * 2
    return out


def slices_in_another_order(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = a.new_zeros(2, 15, 4)
    out[:, 10:] = c
    out[:, :5] = a
    out[:, 5:-5] = b
    return out


def added_slices(*parts: Tensor) -> Tensor:
    out = torch.full((2, 5, 12), 0.0)
    for i, part in enumerate(parts):
        out[..., 4 * i : 4 * i + 4] += part
    return out


def entries(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 3, 4)
    for i, part in enumerate(parts):
        out[:, :, i] = part
    return out


def indices(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    for i, part in enumerate(parts):
        out = out.index_add(-1, torch.arange(4 * i, 4 * i + 4), part)
    return out


def all_indices(*parts: Tensor) -> Tensor:
    out = torch.zeros_like(parts[0])
    for part in parts:
        out = out.index_add(1, torch.arange(5), part)
    return out


def one_index(*parts: Tensor) -> Tensor:
    out = torch.zeros(2, 1, 4)
    return out.index_add(1, torch.zeros(5, dtype=torch.int64), parts[0]).squeeze(1) + 1


def writes(model: Model, *parts: Tensor) -> int:
    """The writes that are left; results must be what they were."""
    program = normalize(plain_trace(lambda *x: model(*x) * 1, *parts))
    torch.testing.assert_close(program.module()(*parts), model(*parts))
    names = ("slice_scatter", "select_scatter", "index_add")
    return sum(len(nodes(program, name)) for name in names)


@sampled(4)
@pytest.mark.parametrize(
    "model",
    [
        slices,
        slices_in_another_order,
        added_slices,
        entries,
        indices,
        all_indices,
        one_index,
    ],
)
def test_tensor_of_parts_is_their_concatenation(model: Model):
    assert writes(model, *PARTS) == 0


def a_part_is_missing(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 12)
    out[..., :4] = a
    out[..., 8:] = c
    return out


def parts_overlap(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 10)
    out[..., :4] = a
    out[..., 3:7] += b
    out[..., 6:] = c
    return out


def not_zero_at_first(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.cat([a, b], -1).exp()
    out = out.index_add(-1, torch.arange(4), b)
    return out.index_add(-1, torch.arange(4, 8), c)


def in_another_order(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros(2, 5, 8).index_add(-1, torch.arange(4, 8), a)
    return out.index_add(-1, torch.tensor([3, 2, 1, 0]), b)


@sampled(2)
@pytest.mark.parametrize(
    ("model", "left"),
    [(a_part_is_missing, 2), (parts_overlap, 3), (not_zero_at_first, 2), (in_another_order, 2)],
)
def test_other_writes_stay(model: Model, left: int):
    assert writes(model, *PARTS) == left
