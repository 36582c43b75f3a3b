import itertools
from collections.abc import Callable

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Layout, flat, fresh_layout, resolve
from moh_deploy.frontend.fx.views import (
    backward,
    broadcast,
    casts,
    forward,
    history,
    is_view,
    lacks,
    through_views,
)
from tests.frontend.traced import Sheet
from tests.nightly import sampled

aten = torch.ops.aten


def coordinates(layout: Layout, shape: tuple[int, ...]) -> list[dict[Axis, int]]:
    """For each element of a tensor in memory order, its place along each axis of the layout."""
    places = []
    for index in itertools.product(*map(range, shape)):
        place: dict[Axis, int] = {}
        for position, dim in zip(index, resolve(layout), strict=True):
            for axis in reversed(dim):
                position, place[axis] = divmod(position, int(axis.size))
        places.append(place)
    return places


def assert_layout_is_true(result: Tensor, layout: Layout, source: Layout, shape: tuple[int, ...]):
    """Element for element: what `result` holds is the element of arange at the same place."""
    element = {
        tuple(sorted((id(axis), at) for axis, at in place.items())): number
        for number, place in enumerate(coordinates(source, shape))
    }
    for place, number in zip(
        coordinates(layout, tuple(result.shape)), result.flatten().tolist(), strict=True
    ):
        known = {axis: at for axis, at in place.items() if axis in set(flat(source))}
        assert element[tuple(sorted((id(axis), at) for axis, at in known.items()))] == number


def numbered(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


VIEWS: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "view": (aten.view.default, ([2, 3, 20],)),
    "reshape": (aten.reshape.default, ([6, 4, 5],)),
    "reshape_minus_one": (aten.reshape.default, ([2, -1, 2, 5],)),
    "flatten": (aten.flatten.using_ints, (1, 2)),
    "unflatten": (aten.unflatten.int, (2, [2, 2])),
    "unsqueeze": (aten.unsqueeze.default, (1,)),
    "transpose": (aten.transpose.int, (1, -1)),
    "permute": (aten.permute.default, ([3, 1, 0, 2],)),
    "movedim": (aten.movedim.int, (0, 2)),
    "swapaxes": (aten.swapaxes.default, (0, 3)),
    "mT": (aten.mT.default, ()),
    "contiguous": (aten.contiguous.default, ()),
    "clone": (aten.clone.default, ()),
    "dropout_in_eval": (aten.dropout.default, (0.5, False)),
    "cast": (aten.to.dtype, (torch.float64,)),
    "slice_of_all": (aten.slice.Tensor, (1, 0, 2**63 - 1)),
    "expand_of_nothing": (aten.expand.default, ([2, -1, -1, -1],)),
}


@sampled(4)
@pytest.mark.parametrize("name", VIEWS)
def test_forward_follows_every_element(name: str):
    target, arguments = VIEWS[name]
    sheet = Sheet(numbered(2, 3, 4, 5))
    node = sheet.call(target, sheet.inputs[0], *arguments)
    source = fresh_layout((2, 3, 4, 5))
    assert is_view(node)
    layout = forward(node, source)
    assert layout is not None
    assert_layout_is_true(sheet.run(node), layout, source, (2, 3, 4, 5))


@sampled(4)
@pytest.mark.parametrize("name", VIEWS)
def test_backward_follows_every_element(name: str):
    target, arguments = VIEWS[name]
    sheet = Sheet(numbered(2, 3, 4, 5))
    node = sheet.call(target, sheet.inputs[0], *arguments)
    result = sheet.run(node)
    layout = fresh_layout(result.shape)
    found = backward(node, layout)
    assert found[0] is sheet.inputs[0]
    assert_layout_is_true(result, layout, found[1], (2, 3, 4, 5))


@pytest.mark.parametrize("index", [0, -1])
def test_selection_of_the_only_entry_is_a_view(index: int):
    sheet = Sheet(numbered(2, 1, 4))
    node = sheet.call(aten.select.int, sheet.inputs[0], -2, index)
    source = fresh_layout((2, 1, 4))
    assert is_view(node)
    layout = forward(node, source)
    assert_layout_is_true(sheet.run(node), layout, source, (2, 1, 4))
    assert backward(node, layout) == (sheet.inputs[0], (layout[0], (), layout[1]))


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten.relu.default, ()),
        (aten.dropout.default, (0.5, True)),
        (aten.slice.Tensor, (1, 0, 2)),
        (aten.slice.Tensor, (3, 0, 2**63 - 1, 2)),
        (aten.flip.default, ([1],)),
        (aten.select.int, (1, 0)),
        (aten.expand.default, ([7, 2, 3, 4, 5],)),
    ],
)
def test_what_changes_or_drops_elements_is_no_view(target, arguments: tuple[object, ...]):
    sheet = Sheet(numbered(2, 3, 4, 5))
    assert not is_view(sheet.call(target, sheet.inputs[0], *arguments))


@pytest.mark.parametrize("target", [aten.relu.default, aten.exp.default, aten.neg.default])
def test_backward_stops_at_arithmetic(target):
    sheet = Sheet(numbered(2, 3))
    node = sheet.call(target, sheet.inputs[0])
    assert backward(node, fresh_layout((2, 3))) is None


def test_expansion_loses_the_axes_it_repeats_along():
    sheet = Sheet(numbered(2, 1, 3))
    node = sheet.call(aten.expand.default, sheet.inputs[0], [5, 2, 4, 3])
    layout = fresh_layout((5, 2, 4, 3))
    _, found = backward(node, layout)
    assert found == (layout[1], (), layout[3])
    assert_layout_is_true(sheet.run(node), layout, found, (2, 1, 3))


def test_repeat_interleave_adds_a_minor_axis():
    sheet = Sheet(numbered(2, 3))
    node = sheet.call(aten.repeat_interleave.self_int, sheet.inputs[0], 4, 1)
    layout = fresh_layout((2, 12))
    _, found = backward(node, layout)
    assert [[int(axis.size) for axis in dim] for dim in resolve(layout)] == [[2], [3, 4]]
    assert_layout_is_true(sheet.run(node), layout, found, (2, 3))


def test_repeat_interleave_of_everything_is_not_followed():
    sheet = Sheet(numbered(2, 3))
    node = sheet.call(aten.repeat_interleave.self_int, sheet.inputs[0], 4)
    assert backward(node, fresh_layout((24,))) is None


# Powers of two: any two ways to cut a dimension nest. A cut across axes, [2, 3] merged and split
# into [3, 2], has no layout, and `forward` says so.
@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4),
    st.lists(st.sampled_from(["permute", "merge", "split", "unsqueeze"]), max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_chain_of_views_is_followed_in_both_directions(extents, steps, random):
    sheet = Sheet(numbered(*extents))
    source = fresh_layout(extents)
    node, layout = sheet.inputs[0], source
    for step in steps:
        node = _one_more(sheet, node, step, random)
        if node.op == "call_function":
            layout = forward(node, layout)
            assert layout is not None
    result = sheet.run(node)
    assert_layout_is_true(result, layout, source, tuple(extents))
    trail = history(node, fresh_layout(result.shape))
    origin, found = trail[-1]
    assert origin is sheet.inputs[0]
    assert_layout_is_true(result, trail[0][1], found, tuple(extents))


def test_a_cut_across_axes_is_not_followed():
    sheet = Sheet(numbered(2, 3))
    merged = sheet.call(aten.flatten.using_ints, sheet.inputs[0])
    cut = sheet.call(aten.unflatten.int, merged, 0, [3, 2])
    layout = forward(merged, fresh_layout((2, 3)))
    assert forward(cut, layout) is None


def _one_more(sheet: Sheet, node: Node, step: str, random) -> Node:
    shape = list(node.meta["val"].shape)
    if step == "permute":
        return sheet.call(aten.permute.default, node, random.sample(range(len(shape)), len(shape)))
    if step == "merge" and len(shape) > 1:
        first = random.randrange(len(shape) - 1)
        return sheet.call(aten.flatten.using_ints, node, first, first + 1)
    if step == "split":
        dim = random.randrange(len(shape))
        factors = [n for n in range(1, shape[dim] + 1) if shape[dim] % n == 0]
        return sheet.call(aten.unflatten.int, node, dim, [random.choice(factors), -1])
    return sheet.call(aten.unsqueeze.default, node, random.randrange(len(shape) + 1))


def test_history_is_stated_in_the_axes_of_its_earliest_tensor():
    sheet = Sheet(numbered(2, 12))
    split = sheet.call(aten.reshape.default, sheet.inputs[0], [2, 3, 4])
    merged = sheet.call(aten.reshape.default, split, [2, 12])
    (last, outer), *_, (first, inner) = history(merged, fresh_layout((2, 12)))
    assert (last, first) == (merged, sheet.inputs[0])
    assert outer == inner
    assert [len(dim) for dim in outer] == [1, 2]


def test_broadcast_aligns_from_the_right():
    sheet = Sheet(torch.zeros(3, 1), torch.zeros(5, 4), torch.zeros(3, 2), torch.zeros(1, 1, 3, 4))
    onto = fresh_layout((3, 4))
    aligned, unfit, other, longer = (broadcast(node, onto) for node in sheet.inputs)
    assert aligned == (onto[0], ())
    assert unfit is None
    assert other is None
    assert longer is None


def test_lacks_looks_at_whole_axes():
    layout = fresh_layout((4, 6))
    (axis,) = layout[1]
    axis.split(sympy.Integer(2), sympy.Integer(3))
    assert lacks((layout[0],), (axis,))
    assert not lacks(((axis.leaves()[0],),), (axis,))


def test_cast_is_told_from_a_copy():
    sheet = Sheet(numbered(2))
    assert casts(sheet.call(aten.to.dtype, sheet.inputs[0], torch.float64))
    assert not casts(sheet.call(aten.clone.default, sheet.inputs[0]))


def test_through_views_ends_at_what_computes():
    sheet = Sheet(torch.ones(2, 3))
    computed = sheet.call(aten.exp.default, sheet.inputs[0])
    moved = sheet.call(aten.t.default, sheet.call(aten.view.default, computed, [3, 2]))
    assert through_views(moved) is through_views(computed) is computed
