import itertools
from collections.abc import Sequence

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, leaves, product
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.fx.graph import op, shape
from tests.frontend.traced import Sheet

aten = torch.ops.aten


def axes(*sizes: int) -> list[Axis]:
    return [Axis(sympy.Integer(size)) for size in sizes]


def extents(layout: Layout) -> list[int]:
    return [int(product(leaves(dim))) for dim in layout]


def numbered(layout: Layout) -> Tensor:
    count = int(product(flat(layout)))
    return torch.arange(float(count)).reshape(extents(layout))


def places(layout: Layout) -> list[dict[Axis, int]]:
    """The place along each axis of every element of a tensor, in memory order."""
    ranges = [range(int(axis.size)) for axis in flat(layout)]
    return [dict(zip(flat(layout), place, strict=True)) for place in itertools.product(*ranges)]


def expected(operand: Tensor, source: Layout, wanted: Layout) -> Tensor:
    """Element by element: what stands at each place of the wanted layout."""
    values = {
        tuple(place[axis] for axis in flat(source)): value
        for place, value in zip(places(source), operand.flatten().tolist(), strict=True)
    }
    elements = [
        values[tuple(place.get(axis, 0) for axis in flat(source))] for place in places(wanted)
    ]
    return torch.tensor(elements).reshape(extents(wanted))


def arranged(source: Layout, wanted: Layout, *, expand: bool = True) -> Tensor:
    page = Sheet(numbered(source))
    operand = Operand(page.inputs[0], source)
    return page.run(LayoutBuilder(page.builder).arrange(operand, wanted, expand=expand))


@st.composite
def layouts(draw: st.DrawFn, pool: Sequence[Axis]) -> Layout:
    """Some of the axes in any order, grouped into dimensions, some of them empty."""
    chosen = draw(st.permutations(pool))[: draw(st.integers(1, len(pool)))]
    dims: list[Dim] = [()]
    for axis in chosen:
        if draw(st.booleans()):
            dims.append(())
        dims[-1] = (*dims[-1], axis)
    return tuple(dims)


@given(st.data())
def test_any_layout_is_brought_into_any_other(data: st.DataObject):
    pool = axes(*data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=4)))
    source, wanted = data.draw(layouts(pool)), data.draw(layouts(pool))
    assert torch.equal(arranged(source, wanted), expected(numbered(source), source, wanted))


@given(st.data())
def test_without_expansion_the_result_broadcasts_to_the_same(data: st.DataObject):
    pool = axes(*data.draw(st.lists(st.integers(2, 3), min_size=1, max_size=4)))
    source, wanted = data.draw(layouts(pool)), data.draw(layouts(pool))
    full = expected(numbered(source), source, wanted)
    lean = arranged(source, wanted, expand=False)
    assert torch.equal(lean.expand(full.shape), full)
    known = set(flat(source))
    assert all(lean.shape[i] == 1 for i, dim in enumerate(wanted) if not known & set(dim))


def test_layout_that_is_there_already_costs_nothing():
    batch, heads = axes(2, 3)
    page = Sheet(numbered(((batch,), (heads,))))
    operand = Operand(page.inputs[0], ((batch,), (heads,)))
    assert LayoutBuilder(page.builder).arrange(operand, operand.layout) is page.inputs[0]


def operators(source: Layout, wanted: Layout) -> list[str]:
    page = Sheet(numbered(source))
    LayoutBuilder(page.builder).arrange(Operand(page.inputs[0], source), wanted)
    return [op(node) for node in page.graph.nodes if node.op == "call_function"]


def test_axes_that_stay_neighbours_move_together():
    b, h, s, d = axes(2, 3, 4, 5)
    assert operators(((b,), (h,), (s,), (d,)), ((b,), (s,), (h, d))) == ["permute", "flatten"]
    assert operators(((b, s), (h, d)), ((h, d), (b, s))) == ["permute"]


def test_axis_that_was_split_is_seen_in_its_parts():
    channels, batch = axes(6, 2)
    head, dim = channels.split(sympy.Integer(2), sympy.Integer(3))
    source, wanted = ((batch,), (channels,)), ((head,), (batch,), (dim,))
    assert torch.equal(arranged(source, wanted), expected(numbered(source), source, wanted))


# Sizes that are known only when the model runs.


def dynamic(*shapes: tuple[int, ...]) -> tuple[Sheet, list[Axis]]:
    """Tensors in which the sizes 5 and 7 are dynamic, and the axes of the first one."""
    page = Sheet(*(torch.zeros(shape) for shape in shapes), dynamic=(5, 7))
    return page, [Axis(extent) for extent in shape(page.inputs[0])]


def test_merged_dynamic_axes_are_split_at_any_size():
    page, (b, s, h) = dynamic((5, 7, 3))
    merged = page.call(aten.flatten.using_ints, page.inputs[0], 0, 1)
    operand = Operand(merged, ((b, s), (h,)))
    node = LayoutBuilder(page.builder).arrange(operand, ((h,), (b,), (s,)))
    for batch, seq in ((2, 4), (6, 1), (1, 5)):
        x = torch.randn(batch, seq, 3)
        assert torch.equal(page.run(node, x), x.permute(2, 0, 1))


def test_missing_dynamic_axis_is_expanded_at_any_size():
    page, (b, s, h) = dynamic((5, 7, 3), (5, 3))
    operand = Operand(page.inputs[1], ((b,), (h,)))
    node = LayoutBuilder(page.builder).arrange(operand, ((b,), (s,), (h,)))
    for batch, seq in ((2, 4), (1, 1)):
        x, y = torch.randn(batch, seq, 3), torch.randn(batch, 3)
        assert torch.equal(page.run(node, x, y), y[:, None].expand(batch, seq, 3))


def test_size_that_no_tensor_has_is_refused():
    page, (b, h) = dynamic((5, 3))
    unknown = Axis(sympy.Symbol("elsewhere"))
    layouts = LayoutBuilder(page.builder)
    operand = Operand(page.inputs[0], ((b,), (h,)))
    with pytest.raises(UnknownSizeError, match="the size elsewhere"):
        layouts.arrange(operand, ((b,), (unknown,), (h,)))
    assert layouts.arrange(operand, ((b,), (unknown,), (h,)), expand=False) is not None


def test_inserted_nodes_know_their_module_and_their_value():
    page, _ = dynamic((5, 7, 3))
    end = page.graph.output_node()
    end.meta["nn_module_stack"] = {"attn": ("blocks.0.attn", "Attention")}
    node = GraphBuilder(page.graph, end).call(aten.transpose.int, page.inputs[0], 0, 1)
    assert node.meta["nn_module_stack"] == end.meta["nn_module_stack"]
    assert shape(node) == (*shape(page.inputs[0])[1::-1], 3)
