"""Compute on [B, S, H, D] what a model computes on [B, H, S, D], where that saves Transposes.

Where queries and keys are normalised, rotated or scaled with the heads in front of the tokens,
they are transposed before that, and the attention's output behind it. Most of these operators do
the same to tensors that are not transposed (`recognize.commuting`), and the op takes those.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::token_conv
from moh_deploy.frontend.fx.axes import Dim, Layout, Size, flat, leaves, product, resolve
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, into_blocks
from moh_deploy.frontend.fx.commuting import Reading, called, read_commuting, with_dims
from moh_deploy.frontend.fx.graph import argument, example_shape, module_path, op, shape
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import is_view
from moh_deploy.frontend.recognize import image_chains
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.frontend.rewrite.rewritten import OperandBuilder, Swap, entry
from moh_deploy.ops import op_names

# A tensor in an order of its elements: the node, the sizes of the blocks of its dimensions, and the
# order of these.
Ordered = tuple[Node, tuple[tuple[Size, ...], ...], tuple[int, ...]]
Moves = frozenset[Ordered]

_NONE: Moves = frozenset()


@dataclass(frozen=True)
class Reader:
    """The places where one layer reads its operands, and what of them is its own."""

    twins: Mapping[Node, Node]  # nodes of the same value to read instead of others
    # True for a node whose value does not depend on the model's inputs.
    is_known: Callable[[Node], bool]
    # True for a node without use once the layer is replaced.
    is_private: Callable[[Node], bool]

    def trail(self, operand: Operand) -> list[Piece]:
        return trail_of(operand, self.twins)


class Reorderer:
    """Brings operands into an order of their axes, through the operators that they are made by.

    Args:
        operands: Inserts what has to be inserted.
    """

    def __init__(self, builder: GraphBuilder, operands: OperandBuilder, reader: Reader) -> None:
        self._builder, self._operands, self._reader = builder, operands, reader
        self._moves: dict[Ordered, Moves] = {}
        self._built: dict[Ordered, Node] = {}
        self._calls: dict[tuple[Node, tuple[Node, ...]], Node] = {}

    def moves(self, operand: Operand, order: Dim) -> Moves:
        """The tensors that have to be transposed in every run for the operand to have its elements
        in this order, from the last operators on that do not commute with a transposition.

        Args:
            order: The axes that the operand varies along, and possibly others.
        """
        # The cheapest way is found by dynamic programming over (tensor, order): two operands that
        # need one tensor in one order share its Transpose, which is why sets are counted.
        trail = self._reader.trail(operand)
        source = _source(trail)
        order = _restricted(order, source)
        key = _ordered(source, order)
        if key not in self._moves:
            self._moves[key], _ = self._fewest(trail, source, order)
        return self._moves[key]

    def _fewest(self, trail: Sequence[Piece], source: Operand, order: Dim) -> tuple[Moves, bool]:
        """The Transposes of a tensor in this order, and whether the operator that makes it is
        applied again, on what it reads in this order."""
        # Weights are transposed once, at export.
        if self._reader.is_known(source.node):
            return _NONE, False
        # As the model computes it, and then rearranged; or computed in this order.
        behind = self._before(source, flat(source.layout)) or _NONE
        if not self._is_there(trail, source, order):
            behind |= {_ordered(source, order)}
        before = self._before(source, order)
        applied = before is not None and len(before) < len(behind)
        return (before or _NONE) if applied else behind, applied

    def _is_there(self, trail: Sequence[Piece], source: Operand, order: Dim) -> bool:
        """True where the model has the tensor in this order, and will have it without the layer."""
        if flat(source.layout) == order:
            return True
        found = entry(trail, _arranged(source.layout, order))
        if found is not None and found.cuts:
            return True
        same = [piece for piece in trail if flat(piece.layout) == order and not piece.cuts]
        return not all(self._reader.is_private(piece.node) for piece in same)

    def _before(self, source: Operand, order: Dim) -> Moves | None:
        """The Transposes of a tensor that is computed in this order; None where it cannot be."""
        reading = self._reading(source)
        if reading is None or not _stays(source.layout, order, reading.result_suffix):
            return None
        # Rotary embeddings: x * cos + rotate_half(x) * sin commutes with a transposition of heads
        # and tokens, if x and cos, sin are read transposed. Cos and sin may have no heads at all.
        layout = _arranged(source.layout, order)
        wanted = [flat(_wanted_layout(source, layout, reading)) for source in reading.sources]
        return _NONE.union(*map(self.moves, reading.sources, wanted))

    def build(self, operand: Operand, order: Dim) -> Operand:
        """Insert the operand with its elements in this order, as `moves` counts.

        Raises:
            NotCoveredError: If the size of an axis cannot be expressed.
        """
        trail = self._reader.trail(operand)
        source = _source(trail)
        order = _restricted(order, source)
        key, layout = _ordered(source, order), _arranged(source.layout, order)
        if key not in self._built:
            _, applied = self._fewest(trail, source, order)
            self._built[key] = (
                self._call(source, layout) if applied else self._operands.taken(trail, layout)
            )
        # With the axes that it varies along: a source may have been expanded later.
        extents = zip(shape(self._built[key]), layout, strict=True)
        held = tuple(dim if size == product(dim) else () for size, dim in extents)
        return Operand(self._built[key], held)

    def _call(self, source: Operand, layout: Layout) -> Node:
        reading = self._reading(source)
        assert reading is not None
        moved: dict[Node, Node] = {}
        for operand in reading.sources:
            wanted = _wanted_layout(operand, layout, reading)
            built = self.build(operand, flat(wanted))
            moved[operand.node] = self._aligned(built, wanted, expand=reading.suffix is not None)
        call, key = called(source.node), tuple(moved.values())
        if (call, key) not in self._calls:
            args, kwargs = map_arg((call.args, dict(call.kwargs)), lambda n: moved.get(n, n))
            assert callable(call.target)
            again = with_dims(call, reading.along, args, kwargs)
            self._calls[call, key] = self._builder.call(call.target, *again[0], **again[1])
        result = self._calls[call, key]
        if call is source.node:
            return result
        assert callable(source.node.target)
        return self._builder.call(source.node.target, result, source.node.args[1])

    def _aligned(self, operand: Operand, wanted: Layout, *, expand: bool) -> Node:
        """One dimension for each of `wanted`; of size 1 where nothing has to be expanded."""
        layout, wanted = resolve(operand.layout), resolve(wanted)
        present = set(flat(layout))
        held = tuple(dim if present & set(dim) else () for dim in wanted)
        if (not layout and not expand) or layout == (wanted if expand else held):
            return operand.node
        return self._operands.arrange(Operand(operand.node, layout), wanted, expand=expand)

    def _reading(self, source: Operand) -> Reading | None:
        """Read an operator that commutes and has a single reader."""
        reading = read_commuting(source.node, source.layout)
        if reading is None or not self._reader.is_private(called(source.node)):
            return None
        return reading


def _source(trail: Sequence[Piece]) -> Operand:
    """The farthest tensor that a tensor is a view of."""
    whole = [piece for piece in trail if not piece.cuts]
    return Operand(whole[-1].node, resolve(whole[-1].layout))


def _restricted(order: Dim, source: Operand) -> Dim:
    own = set(flat(source.layout))
    return tuple(axis for axis in leaves(order) if axis in own)


def _ordered(source: Operand, order: Dim) -> Ordered:
    dims = into_blocks(source.layout, (order,))
    parts = [block for dim in dims for block in dim]
    places = sorted(range(len(parts)), key=lambda i: order.index(parts[i][0]))
    return source.node, tuple(tuple(map(product, dim)) for dim in dims), tuple(places)


def _stays(layout: Layout, order: Dim, count: int) -> bool:
    """True where the last `count` dimensions stay the last ones."""
    suffix = flat(layout[len(layout) - count :])
    return leaves(order)[len(flat(layout)) - len(suffix) :] == suffix


def _arranged(layout: Layout, order: Dim) -> Layout:
    """The dimensions in this order, cut into blocks where they do not stay together; leading and
    trailing ones that keep their places as they are."""
    # Batch in front and head dimension behind keep their places: what is between is cut into
    # blocks, which are then sorted.
    layout, order = resolve(layout), leaves(order)
    first, last = 0, len(layout)
    while first < last and flat(layout[: first + 1]) == order[: len(flat(layout[: first + 1]))]:
        first += 1
    while first < last and _stays(layout, order, len(layout) - last + 1):
        last -= 1
    parts = [block for dim in into_blocks(layout[first:last], (order,)) for block in dim]
    return (
        *layout[:first],
        *sorted(parts, key=lambda block: order.index(block[0])),
        *layout[last:],
    )


def _wanted_layout(source: Operand, layout: Layout, reading: Reading) -> Layout:
    """The layout in which an operator whose result has `layout` wants a source."""
    if reading.suffix is None:
        present = set(flat(source.layout))
        return tuple(dim if present & set(dim) else () for dim in resolve(layout))
    front = layout[: len(layout) - reading.result_suffix]
    return (*front, *source.layout[len(source.layout) - reading.suffix :])


# Compute on tokens what a model computes on images that it makes of them.
#
# `tokens [B, N, C] -> image [B, C, H, W] -> convolutions -> tokens` moves every activation twice. A
# depthwise convolution becomes a MoHTokenConv, with the bias of the product before it and the gelu
# and the gates that follow; a convolution of one pixel a matrix product, the mean of blocks a mean.

aten = torch.ops.aten

_PARTS = frozenset(["chunk", "split", "split_with_sizes", "getitem", "slice", "narrow"])


def insert_token_layout(program: ExportedProgram) -> list[Swap]:
    """Insert beside each chain of operators on an image the same on tokens."""
    graph = program.graph_module.graph
    swaps = [_insert(graph, chain) for chain in image_chains.find_image_chains(graph)]
    program.graph_module.recompile()
    return swaps


def _insert(graph: Graph, chain: image_chains.ImageChain) -> Swap:
    builder = GraphBuilder(graph, chain.end)
    layouts = LayoutBuilder(builder)
    entry, input_bias = chain.entry, None
    if isinstance(chain.steps[0], image_chains.Depthwise):
        entry, input_bias = _split_off_bias(builder, chain)
    tokens = layouts.arrange(entry, (*chain.image.tokens[:2], chain.features))
    inserted: list[str] = []
    for step in chain.steps:
        tokens, name = _on_tokens(builder, step, tokens, input_bias)
        inserted.append(name)
        input_bias = None
    result = layouts.arrange(Operand(tokens, chain.steps[-1].image.tokens), chain.layout)
    for node in chain.inner:
        # A size would keep the whole image alive for a number.
        _read_sizes_elsewhere(graph, node)
    path = ".".join(module_path(chain.end)) or "model"
    return Swap(
        chain.end,
        result,
        f"the token layout of {path}",
        path=path,
        replaced=tuple(op(node) for node in (*chain.inner, chain.end)),
        inserted=tuple(inserted),
    )


def _split_off_bias(
    builder: GraphBuilder, chain: image_chains.ImageChain
) -> tuple[Operand, Node | None]:
    """The tokens before the bias of the product that makes them, and the bias: adding it would be
    one more pass over all of them. Where the chain alone reads them; else the tokens."""
    entry = chain.entry
    bias = argument(entry.node, "bias") if op(entry.node) == "linear" else None
    if not isinstance(bias, Node) or entry.layout[-1:] != (chain.features,):
        return entry, None
    # The entry and its views and parts, down to the chain: nothing else may read them.
    own = {*chain.inner, chain.end}
    between = list(
        walk(
            entry.node,
            lambda node: [
                user for user in node.users if user not in own and op(user) != "sym_size"
            ],
        )
    )
    if not all(is_view(node) or op(node) in _PARTS for node in between[1:]):
        return entry, None
    # The op adds the bias as it reads a token: W x + b never stands in memory.
    for node in between:
        _read_sizes_elsewhere(chain.end.graph, node)
    product = builder.call(aten.linear.default, *entry.node.args[:2])
    return Operand(product, entry.layout), bias


def _on_tokens(
    builder: GraphBuilder, step: image_chains.ImageOp, tokens: Node, input_bias: Node | None
) -> tuple[Node, str]:
    """Insert one step on tokens [B, N, C], and name its operator; the first one may have to add a
    bias to them."""
    if isinstance(step, image_chains.Depthwise):
        sizes = (example_shape(step.weight)[0], step.image.height, step.image.width)
        activation = "gelu" if step.gelu else "none"
        arguments = (tokens, step.weight, step.bias, input_bias, *sizes, activation, step.gated)
        made = builder.call(torch.ops.moh.token_conv.default, *arguments)
        return made, op_names.TOKEN_CONV
    if isinstance(step, image_chains.Pointwise):
        weight = builder.call(aten.flatten.using_ints, step.weight, 1)  # [O, C]
        return builder.call(aten.linear.default, tokens, weight, step.bias), "linear"
    if isinstance(step, image_chains.BlockMean):
        return _block_mean(builder, step, tokens), "mean"
    node = step.node
    assert callable(node.target)
    return builder.call(node.target, tokens, *node.args[1:], **node.kwargs), op(node)


def _block_mean(builder: GraphBuilder, step: image_chains.BlockMean, tokens: Node) -> Node:
    """One side of the blocks after the other, each as a mean over the middle of three dimensions:
    a runtime reduces one dimension faster than two, and has fast code for no more dimensions."""
    (height, width), block = (step.image.height, step.image.width), step.block
    channels = example_shape(tokens)[-1]

    def mean_of(node: Node, size: int, inner: int) -> Node:
        blocks = builder.call(aten.reshape.default, node, [-1, size, inner])
        return builder.call(aten.mean.dim, blocks, [1])

    rows = mean_of(tokens, block[1], channels)  # [B * gh * bh * gw, C]
    means = mean_of(rows, block[0], width * channels)  # [B * gh, gw * C]
    # [B, gh * gw, C]
    return builder.call(aten.reshape.default, means, [-1, height * width, channels])


def _read_sizes_elsewhere(graph: Graph, node: Node) -> None:
    """Let who asks for a size of a node ask an earlier one, which stays."""
    for reader in list(node.users):
        if reader.target is aten.sym_size.int:
            extent = shape(node)[int(str(reader.args[1]))]
            reader.replace_all_uses_with(GraphBuilder(graph, reader).size(extent))
