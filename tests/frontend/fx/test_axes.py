import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv

from moh_deploy.frontend.fx.axes import (
    Axis,
    flat,
    fresh_dim,
    fresh_layout,
    leaves,
    product,
    regroup,
    resolve,
    same,
    size_of,
)
from tests.frontend.traced import Sheet

BATCH, SEQ = sympy.Symbol("b", integer=True, positive=True), sympy.Symbol("s", integer=True)


def axes(*sizes: object) -> tuple[Axis, ...]:
    return tuple(Axis(sympy.sympify(size)) for size in sizes)


def sizes(layout) -> list[list[object]]:
    return [[axis.size for axis in dim] for dim in resolve(layout)]


def shape(*extents: object) -> tuple[sympy.Expr, ...]:
    return tuple(sympy.sympify(extent) for extent in extents)


def test_dimension_of_size_one_has_no_axis():
    assert fresh_dim(sympy.Integer(1)) == ()
    assert sizes(fresh_layout((2, 1, 3))) == [[2], [], [3]]


def test_axes_of_equal_size_are_not_the_same():
    one, two = fresh_layout((4, 4))
    assert not same((one,), (two,))


def test_merging_dimensions_keeps_their_axes_in_order():
    heads, head_dim = axes(4, 8)
    assert regroup((heads, head_dim), shape(32)) == ((heads, head_dim),)


def test_splitting_a_dimension_splits_its_axis_for_everyone_who_holds_it():
    (channels,) = axes(32)
    held_elsewhere = ((channels,),)
    layout = regroup((channels,), shape(4, 8))
    assert sizes(layout) == [[4], [8]]
    assert resolve(held_elsewhere) == ((*layout[0], *layout[1]),)


def test_splitting_and_merging_again_gives_the_same_layout():
    batch, channels = axes(BATCH, 32)
    split = regroup((batch, channels), shape(BATCH, 4, 8))
    merged = regroup(flat(split), shape(BATCH, 32))
    assert same(merged, ((batch,), (channels,)))


def test_axis_is_cut_across_an_old_boundary():
    layout = regroup(axes(4, 6), shape(8, 3))
    assert sizes(layout) == [[4, 2], [3]]


def test_dynamic_sizes_divide_symbolically():
    layout = regroup(axes(BATCH * 4, SEQ, 8), shape(BATCH, 4, SEQ * 8))
    assert sizes(layout) == [[BATCH], [4], [SEQ, 8]]


def test_sizes_that_cannot_be_told_apart_are_refused():
    assert regroup(axes(BATCH), shape(SEQ, 2)) is None
    assert regroup(axes(6), shape(4, 2)) is None
    assert regroup(axes(4, 3), shape(6, 2)) is None


@pytest.mark.parametrize("extents", [(4,), (4, 4, 2)])
def test_other_number_of_elements_is_refused(extents: tuple[int, ...]):
    assert regroup(axes(4, 4), shape(*extents)) is None


@pytest.mark.parametrize(
    ("quotient", "expected"),
    [
        (FloorDiv(2 * SEQ - 1, 2), SEQ - 1),
        (FloorDiv(6 * SEQ + 7, 3), 2 * SEQ + 2),
        (FloorDiv(SEQ - 1, 2), FloorDiv(SEQ - 1, 2)),
    ],
)
def test_remainder_of_a_symbolic_quotient_is_rounded_down(quotient, expected):
    assert size_of(quotient) == expected
    assert all(size_of(quotient).subs(SEQ, n) == quotient.subs(SEQ, n) for n in range(1, 9))


def test_size_of_a_symbolic_quotient_that_divides_is_exact():
    sheet = Sheet(torch.zeros(3, 5), dynamic=(3,))
    extent = sheet.inputs[0].meta["val"].shape[0]
    symbol = size_of(extent)
    assert size_of(extent * extent // extent) == symbol
    assert size_of(7) == 7


def test_size_of_a_symbolic_quotient_that_may_leave_a_rest_stays_a_floor():
    sheet = Sheet(torch.zeros(3, 5), dynamic=(3,))
    extent = sheet.inputs[0].meta["val"].shape[0]
    assert size_of(extent // 2) == FloorDiv(size_of(extent), 2)


def test_product_of_no_axes_is_one():
    assert product(()) == 1
    assert product(axes(BATCH, 3)) == 3 * BATCH


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_regrouping_keeps_all_elements_in_memory_order(extents: list[int], data: st.DataObject):
    layout = fresh_layout(extents)
    merged = data.draw(st.integers(0, len(extents)), label="dimensions merged into one")
    target = (*extents[merged:],) if merged == 0 else (_count(extents[:merged]), *extents[merged:])
    found = regroup(flat(layout), shape(*target))
    assert found is not None
    assert [product(dim) for dim in found] == list(target)
    assert flat(found) == leaves(flat(layout))


def _count(extents: list[int]) -> int:
    return int(torch.Size(extents).numel())
