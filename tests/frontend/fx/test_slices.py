import operator

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import fresh_layout, product
from moh_deploy.frontend.fx.slices import Slice, pieces, read_slice
from tests.frontend.traced import Sheet

aten = torch.ops.aten


def sheet() -> Sheet:
    return Sheet(torch.arange(2.0 * 12 * 3).reshape(2, 12, 3))


PARTS = {
    "slice": (aten.slice.Tensor, (1, 4, 8), (4, 8)),
    "slice_from_the_end": (aten.slice.Tensor, (1, -4, 2**63 - 1), (8, 12)),
    "slice_to_the_end": (aten.slice.Tensor, (-2, 6, 2**63 - 1), (6, 12)),
    "slice_from_before_the_start": (aten.slice.Tensor, (1, -20, 4), (0, 4)),
    "narrow": (aten.narrow.default, (1, 3, 3), (3, 6)),
}


@pytest.mark.parametrize("name", PARTS)
def test_slice_is_read(name: str):
    target, arguments, (start, stop) = PARTS[name]
    page = sheet()
    node = page.call(target, page.inputs[0], *arguments)
    assert read_slice(node) == Slice(page.inputs[0], 1, start, stop, keeps_dim=True)


def test_select_loses_its_dimension():
    page = sheet()
    node = page.call(aten.select.int, page.inputs[0], 1, -1)
    assert read_slice(node) == Slice(page.inputs[0], 1, 11, 12, keeps_dim=False)


@pytest.mark.parametrize(
    ("target", "arguments", "piece", "expected"),
    [
        (aten.chunk.default, (3, 1), 1, (4, 8)),
        (aten.chunk.default, (5, 1), 3, (9, 12)),
        (aten.split.Tensor, (5, 1), 2, (10, 12)),
        (aten.split_with_sizes.default, ([2, 7, 3], 1), 1, (2, 9)),
    ],
)
def test_piece_of_a_split_is_a_slice(target, arguments, piece: int, expected: tuple[int, int]):
    page = sheet()
    split = page.call(target, page.inputs[0], *arguments)
    found = read_slice(_item(page, split, piece))
    assert (found.source, found.dim, found.start, found.stop) == (page.inputs[0], 1, *expected)


def test_piece_of_an_unbind_loses_its_dimension():
    page = sheet()
    found = read_slice(_item(page, page.call(aten.unbind.int, page.inputs[0], 1), 5))
    assert found == Slice(page.inputs[0], 1, 5, 6, keeps_dim=False)


def _item(page: Sheet, split: Node, index: int) -> Node:
    with page.graph.inserting_after(split):
        node = page.graph.call_function(operator.getitem, (split, index))
    node.meta["val"] = split.meta["val"][index]
    return node


def test_slices_of_everything_are_looked_through():
    page = sheet()
    everything = page.call(aten.slice.Tensor, page.inputs[0], 0, 0, 2**63 - 1)
    assert read_slice(page.call(aten.narrow.default, everything, 1, 0, 2)).source is page.inputs[0]


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (aten.slice.Tensor, (1, 0, 12, 2)),
        (aten.slice.Tensor, (1, 12, 2**63 - 1)),
        (aten.index_select.default, (1, torch.tensor([1]))),
        (aten.relu.default, ()),
    ],
    ids=["steps", "nothing", "index", "arithmetic"],
)
def test_anything_else_is_no_slice(target, arguments):
    page = sheet()
    arguments = [page.call(aten.arange.default, 2) if torch.is_tensor(a) else a for a in arguments]
    assert read_slice(page.call(target, page.inputs[0], *arguments)) is None


def test_slice_of_a_dynamic_dimension_is_not_read():
    page = Sheet(torch.zeros(7, 3), dynamic=(7,))
    assert read_slice(page.call(aten.slice.Tensor, page.inputs[0], 0, 0, 2)) is None


def test_piece_of_a_split_without_elements_is_no_slice():
    page = sheet()
    split = page.call(aten.split_with_sizes.default, page.inputs[0], [12, 0], 1)
    assert read_slice(_item(page, split, 1)) is None


def test_slice_of_an_unknown_length_is_not_read():
    page = Sheet(torch.zeros(12, 3), torch.zeros(7), dynamic=(7,))
    length = page.call(aten.sym_size.int, page.inputs[1], 0)
    assert read_slice(page.call(aten.slice.Tensor, page.inputs[0], 0, 0, length)) is None


# Query, key and value of one projection, in the ways people take them apart.


def thirds(page: Sheet, projection: Node) -> list[Node]:
    split = page.call(aten.chunk.default, projection, 3, 2)
    return [_item(page, split, index) for index in range(3)]


def per_head(page: Sheet, node: Node) -> Node:
    """[B, S, H*D] to [B, H, S, D]."""
    return page.call(
        aten.permute.default, page.call(aten.unflatten.int, node, 2, [4, 2]), [0, 2, 1, 3]
    )


def qkv_major(page: Sheet, projection: Node) -> Node:
    wide = page.call(aten.unflatten.int, projection, 2, [3, 4, 2])
    return page.call(aten.select.int, page.call(aten.permute.default, wide, [2, 0, 3, 1, 4]), 0, 1)


def heads_major(page: Sheet, projection: Node) -> Node:
    wide = page.call(aten.unflatten.int, projection, 2, [4, 3, 2])
    return page.call(aten.select.int, page.call(aten.permute.default, wide, [3, 0, 2, 1, 4]), 0, 1)


WAYS = {
    "chunk": lambda page, x: per_head(page, thirds(page, x)[1]),
    "select": qkv_major,
    "heads_major": heads_major,
}


@pytest.mark.parametrize("name", WAYS)
def test_every_piece_holds_the_same_elements(name: str):
    page = Sheet(torch.arange(2.0 * 5 * 24).reshape(2, 5, 24))
    key = WAYS[name](page, page.inputs[0])
    layout = fresh_layout((2, 4, 5, 2))
    found = pieces(key, layout)
    expected = page.run(key)
    axes = [axis for dim in found[0].layout for axis in dim]
    for piece in found:
        value = page.run(piece.node)
        for dim, start, stop in piece.cuts:
            value = value.narrow(dim, start, stop - start)
        assert value.shape == tuple(int(product(dim)) for dim in piece.layout)
        assert torch.equal(in_order(value, piece.layout, axes).reshape(expected.shape), expected)


def in_order(value: Tensor, layout, axes) -> Tensor:
    flat = [axis for dim in layout for axis in dim]
    whole = value.reshape([int(axis.size) for axis in flat])
    return whole.permute([flat.index(axis) for axis in axes])


@pytest.mark.parametrize("name", ["chunk", "select"])
def test_a_cut_of_the_projection_is_among_the_pieces(name: str):
    page = Sheet(torch.zeros(2, 5, 24))
    last = pieces(WAYS[name](page, page.inputs[0]), fresh_layout((2, 4, 5, 2)))[-1]
    assert (last.node, last.cuts) == (page.inputs[0], ((2, 8, 16),))


def test_a_part_of_a_part_is_one_cut():
    page = Sheet(torch.arange(2.0 * 24).reshape(2, 24))
    third = _item(page, page.call(aten.chunk.default, page.inputs[0], 3, 1), 1)
    half = _item(page, page.call(aten.chunk.default, third, 2, 1), 1)
    last = pieces(half, fresh_layout((2, 4)))[-1]
    assert (last.node, last.cuts) == (page.inputs[0], ((1, 12, 16),))


def test_a_part_that_is_not_contiguous_is_no_cut():
    page = Sheet(torch.zeros(2, 5, 24))
    found = pieces(heads_major(page, page.inputs[0]), fresh_layout((2, 4, 5, 2)))
    assert page.inputs[0] not in [piece.node for piece in found]


def test_an_unequal_part_ends_the_search():
    page = Sheet(torch.zeros(2, 5, 24))
    part = page.call(aten.slice.Tensor, page.inputs[0], 2, 4, 12)
    assert [piece.node for piece in pieces(part, fresh_layout((2, 5, 8)))] == [part]
