from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.errors import ExportError
from moh_deploy.frontend.limits import (
    Relations,
    cut_tables,
    dim_ranges,
    dim_sums,
    joined_dims,
    unmet_assertions,
    with_tables,
)
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.trace import trace
from moh_deploy.package import DimSum
from tests.frontend.test_trace import Model
from tests.frontend.traced import loaded
from tests.nightly import nightly


def ranges_of(function, size: int, dim: str = "n") -> dict[str, tuple[int, int | None]]:
    inputs = [ModelInput("x", torch.randn(2, size, 4), {1: dim})]
    return dim_ranges(trace(loaded(Model(function)), inputs), inputs)


def in_windows(m: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(1, (x.shape[1] // 8, 8)).sum(2)


def padded(m: nn.Module, x: Tensor) -> Tensor:
    return in_windows(m, F.pad(x, (0, 0, 0, -x.shape[1] % 8)))


def padded_by_a_branch(m: nn.Module, x: Tensor) -> Tensor:
    if x.shape[1] % 8:
        x = F.pad(x, (0, 0, 0, 8 - x.shape[1] % 8))
    return in_windows(m, x)


def test_sizes_are_not_limited_where_nothing_limits_them():
    assert ranges_of(lambda m, x: m.linear(x), 5) == {}


def test_table_of_positions_limits_a_dimension():
    assert ranges_of(lambda m, x: x + m.positions[: x.shape[1]], 5) == {"n": (1, 64)}


def test_table_of_positions_limits_a_dimension_that_no_axis_has_alone():
    def function(m, x):
        return x + m.positions[: x.shape[1]]

    assert ranges_of(function, 10, "2*n") == {"n": (1, 32)}


def test_branch_on_a_range_limits_a_dimension():
    assert ranges_of(lambda m, x: x if x.shape[1] > 4 else x * 2, 6) == {"n": (5, None)}


def test_branch_that_torch_cannot_solve_limits_a_dimension():
    found = ranges_of(lambda m, x: x * 3 if x.shape[1] ** 2 <= 40_000 else x * 2, 30)
    least, most = found["n"]
    assert least == 1
    assert 30 < most <= 200


def test_assertion_on_a_size_that_follows_limits_a_dimension():
    """Two windows or more: of one window, torch would make a constant."""

    def function(m, x):
        return x * 2 if x.shape[1] // 3 > 4 else x

    assert ranges_of(function, 30) == {"n": (15, None)}
    assert ranges_of(function, 6) == {"n": (1, 14)}


@nightly
def test_padding_to_a_multiple_takes_sizes_between():
    (least, most) = ranges_of(padded, 13)["n"]
    assert (least, most) == (9, None)
    inputs = [ModelInput("x", torch.randn(2, 13, 4), {1: "n"})]
    program = trace(loaded(Model(padded)), inputs).module()
    for n in (9, 16, 17, 24):
        given = torch.randn(2, n, 4)
        torch.testing.assert_close(program(given), padded(nn.Identity(), given))


@nightly
def test_dimension_that_must_be_a_multiple_is_told_how_to_declare_it():
    with pytest.raises(ExportError, match=r"'n' must be 8\*n: ") as caught:
        ranges_of(in_windows, 16)
    assert caught.value.hint == "Declare the axis as 8*n; its example 16 or more."
    assert ranges_of(in_windows, 16, "8*n") == {}


@nightly
def test_branch_on_a_remainder_is_refused():
    told = r"another way where dimension 'n' is 8\*n, at frontend/test_limits\.py:\d+\."
    with pytest.raises(ExportError, match=told) as caught:
        ranges_of(padded_by_a_branch, 13)
    assert "F.pad(x, (0, -n % 8))" in str(caught.value.hint)
    with pytest.raises(ExportError, match=r"'n' must be 8\*n"):
        ranges_of(padded_by_a_branch, 16)
    assert ranges_of(padded_by_a_branch, 16, "8*n") == {}
    assert ranges_of(padded_by_a_branch, 13, "8*n-3") == {}


def test_sizes_by_which_the_model_would_divide_by_zero_are_outside_of_the_range():
    """lucidrains' local attention: windows = n // 4, assert n % windows == 0."""

    def function(m, x):
        return x * 2 if x.shape[1] % (x.shape[1] // 3) < 99 else x

    inputs = [ModelInput("x", torch.randn(2, 12, 4), {1: "n"})]
    program = trace(loaded(Model(function)), inputs)
    assert dim_ranges(program, inputs)["n"] == (3, None)
    assert unmet_assertions(program, inputs, {"n": 2})
    assert unmet_assertions(program, inputs, {"n": 5}) == []


def test_single_size_that_is_another_way_is_a_limit():
    def function(m, x):
        return x if 3 * x.shape[1] == 96 else x * 2

    assert ranges_of(function, 30) == {"n": (1, 31)}
    assert ranges_of(function, 40) == {"n": (33, None)}


def test_branch_on_a_long_remainder_is_refused():
    def function(m, x):
        return x * 3 if x.shape[1] % 100 else x * 2

    place = rf"frontend/test_limits\.py:{function.__code__.co_firstlineno + 1}"
    with pytest.raises(ExportError, match=rf"way where dimension 'n' is 100\*n, at {place}\."):
        ranges_of(function, 30)


def test_sizes_that_are_one_by_one_too_small_make_one_limit():
    def function(m, x):
        return x * 3 if x.shape[1] // 2 * 2 > 7 or x.shape[1] == 3 else x * 2

    assert ranges_of(function, 30) == {"n": (8, None)}


def test_dimension_that_something_is_added_to_is_joined():
    inputs = [
        ModelInput("x", torch.randn(2, 5, 4), {0: "batch", 1: "seq"}),
        ModelInput("past", torch.randn(2, 7, 4), {0: "batch", 1: "past"}),
    ]
    joined = trace(loaded(Model(lambda m, x, past: torch.cat([past, x], 1))), inputs)
    assert joined_dims(joined, inputs) == ["seq", "past"]
    apart = trace(loaded(Model(lambda m, x, past: x[:, 1:] + past.sum(1, keepdim=True))), inputs)
    assert joined_dims(apart, inputs) == []


def test_relation_of_several_dimensions_limits_none_of_them():
    """A mask over a cache and new tokens has a length of its own name."""
    inputs = [
        ModelInput("x", torch.randn(2, 3, 4), {1: "seq"}),
        ModelInput("past", torch.randn(2, 5, 4), {1: "past"}),
        ModelInput("mask", torch.randn(2, 8, 1), {1: "total"}),
    ]
    found = dim_ranges(trace(loaded(Joined()), inputs), inputs)
    assert all(most is None for _, most in found.values())
    assert all(least <= 4 for least, _ in found.values())


class Joined(nn.Module):
    def forward(self, x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([past, x], 1).masked_fill(mask > 0, 0.0)


def test_dimension_that_follows_from_others_is_completed():
    inputs = [
        ModelInput("x", torch.randn(2, 3, 4), {1: "seq"}),
        ModelInput("past", torch.randn(2, 5, 4), {1: "past"}),
        ModelInput("mask", torch.randn(2, 8, 1), {1: "total"}),
    ]
    relations = Relations.of(trace(loaded(Joined()), inputs), inputs)
    sizes = relations.complete({"seq": 1, "past": 0, "total": 8})
    assert sizes == {"seq": 1, "past": 0, "total": 1}
    assert relations.complete_ranges({"seq": (1, None), "total": (4, None)}) == {"seq": (1, None)}
    assert relations.complete_ranges({"seq": (2, 9)}) == {"seq": (2, 9), "total": (2, None)}


class Trimmed(nn.Module):
    def forward(self, x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        joined = torch.cat([past, x], 1)
        if mask.shape[1] < joined.shape[1]:
            return joined
        return joined.masked_fill(mask[:, torch.arange(joined.shape[1])] > 0, 0.0)


@pytest.mark.parametrize(("total", "follows"), [(8, True), (9, False)])
def test_mask_that_may_be_longer_follows_where_it_is_not(total: int, follows: bool):
    inputs = [
        ModelInput("x", torch.randn(2, 3, 4), {1: "seq"}),
        ModelInput("past", torch.randn(2, 5, 4), {1: "past"}),
        ModelInput("mask", torch.randn(2, total, 1), {1: "total"}),
    ]
    program = trace(loaded(Trimmed()), inputs)
    sizes = {"seq": 4, "past": 6, "total": 8}
    relations = Relations.of(program, inputs)
    assert relations.complete(sizes) == {**sizes, "total": 10 if follows else 8}
    assert "past + seq <= total" in unmet_assertions(program, inputs, sizes)
    assert "past + seq <= total" not in unmet_assertions(program, inputs, {**sizes, "total": 10})


def test_range_of_a_size_is_asserted_too():
    inputs = [ModelInput("x", torch.randn(2, 6, 4), {1: "n"})]
    program = trace(loaded(Model(lambda m, x: x if x.shape[1] > 4 else x * 2)), inputs)
    assert unmet_assertions(program, inputs, {"n": 5}) == []
    assert unmet_assertions(program, inputs, {"n": 4}) == ["n >= 5"]


class SharesATable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        start = past.shape[1]
        return x + self.positions[start : start + x.shape[1]]


def test_dimensions_that_share_a_table_are_limited_together():
    inputs = [
        ModelInput("x", torch.randn(2, 3, 4), {0: "batch", 1: "seq"}),
        ModelInput("past", torch.randn(2, 5, 4), {0: "batch", 1: "past"}),
    ]
    assert dim_sums(trace(loaded(SharesATable()), inputs), inputs) == (DimSum(("past", "seq"), 16),)
    alone = [ModelInput("x", torch.randn(2, 3, 4), {1: "n"})]
    table = trace(loaded(Model(lambda m, x: x + m.positions[: x.shape[1]])), alone)
    assert dim_sums(table, alone) == ()


def test_limit_says_which_table_is_cut_at_it():
    inputs = [
        ModelInput("x", torch.randn(2, 3, 4), {0: "batch", 1: "seq"}),
        ModelInput("past", torch.randn(2, 5, 4), {0: "batch", 1: "past"}),
    ]
    program = trace(loaded(SharesATable()), inputs)
    both = DimSum(("past", "seq"), 16)
    named = replace(both, table="positions")
    assert cut_tables(program, inputs) == [named]
    assert with_tables([both], {"seq": (1, 16)}, [named]) == (named,)
    assert with_tables([both], {}, []) == (both,)
    # Of one dimension the range says it already, but not the table.
    alone = DimSum(("seq",), 12, "positions")
    assert with_tables([], {"seq": (1, 12), "n": (1, 9)}, [alone]) == (alone,)
    assert with_tables([], {"seq": (1, 64)}, [alone]) == ()  # the model takes more than that
