"""Insert operators into an exported graph, and bring tensors into a wanted layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph, Node
from torch.fx.node import Argument, map_arg

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, Size, product, resolve, size_of
from moh_deploy.frontend.fx.graph import fake_mode, shape, tensor

# The refusal to rewrite one layer.


class NotCoveredError(Exception):
    """An attention that no op can express; the message is what the user reads."""


# A tensor of the graph together with the meaning of its dimensions.


@dataclass(frozen=True)
class Operand:
    """A tensor of the graph and what its dimensions mean."""

    node: Node
    layout: Layout


aten = torch.ops.aten


# A dimension as blocks of neighbouring axes that move together.
BlockedDim = tuple[Dim, ...]


class UnknownSizeError(NotCoveredError):
    """A layout needs a size that no earlier tensor of the graph has."""


class GraphBuilder:
    """Inserts calls in front of one node of a graph; every new node carries its fake value and the
    module path of that node.

    Args:
        graph: The graph to insert into.
        before: New nodes stand directly in front of it.
    """

    def __init__(self, graph: Graph, before: Node) -> None:
        self._graph = graph
        self._before = before

    def call(self, target: Callable[..., object], *args: object, **kwargs: object) -> Node:
        """Insert a call and return its node."""
        with self._graph.inserting_before(self._before):
            node: Node = self._graph.call_function(
                target, cast(tuple[Argument, ...], args), cast(dict[str, Argument], kwargs)
            )
        fakes = map_arg((node.args, dict(node.kwargs)), lambda arg: arg.meta["val"])
        fake_args, fake_kwargs = cast(tuple[tuple[object, ...], dict[str, object]], fakes)
        # Shapes and dtypes come from running the operator on fake tensors, as torch.export does: by
        # Python, as kernels in C++ (constant_pad_nd) turn a symbolic size into that of the example.
        with fake_mode(self._graph), enable_python_dispatcher():
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        for key in ("nn_module_stack", "stack_trace"):
            if key in self._before.meta:
                node.meta[key] = self._before.meta[key]
        return node

    def apply(self, target: object, given: Mapping[str, object]) -> Node:
        """Insert a call with arguments as `arguments` returned them; return its node."""
        named: set[str] = set()
        if isinstance(target, torch._ops.OpOverload):
            named = {formal.name for formal in target._schema.arguments if formal.kwarg_only}
        args = (value for name, value in given.items() if name not in named)
        kwargs = {name: value for name, value in given.items() if name in named}
        return self.call(cast(Callable[..., object], target), *args, **kwargs)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """Return the node in this dtype."""
        return node if tensor(node).dtype == dtype else self.call(aten.to.dtype, node, dtype)

    def size(self, extent: Size) -> Node:
        """Return a node that has this symbolic size; the earliest one, so that nothing late is
        kept alive for it.

        Raises:
            UnknownSizeError: If no earlier node has it.
        """
        for node in self._graph.nodes:
            if node is self._before:
                break
            found = node.meta.get("val")
            if isinstance(found, torch.SymInt) and size_of(found) == extent:
                return cast(Node, node)
            if isinstance(found, torch.Tensor) and extent in shape(node):
                return self.call(aten.sym_size.int, node, shape(node).index(extent))
        raise UnknownSizeError(f"no tensor of the model has the size {extent}")

    def sizes(self, extents: Sequence[Size]) -> list[int | Node]:
        """Sizes to reshape to: numbers, nodes, and -1 for the first one that is not a number."""
        # reshape works one size out by itself: one less to be looked up in the graph.
        sizes: list[int | Node] = []
        for extent in extents:
            if extent.is_Integer:
                sizes.append(int(extent))
            else:
                sizes.append(-1 if -1 not in sizes else self.size(extent))
        return sizes


class LayoutBuilder:
    """Brings tensors into a layout with as few views as the layout allows.

    Args:
        builder: Where to insert.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder

    def arrange(self, operand: Operand, wanted: Layout, *, expand: bool = True) -> Node:
        """Return `operand` with layout `wanted`.

        Args:
            operand: A tensor. It must not vary along axes that `wanted` lacks.
            wanted: One group of axes for each dimension of the result.
            expand: Give axes that the operand lacks their full size. Otherwise a dimension that
                lacks all of its axes has size 1, for tensors that are broadcast by who reads them.

        Raises:
            UnknownSizeError: If the size of an axis cannot be expressed.
        """
        node, layout, wanted = operand.node, resolve(operand.layout), resolve(wanted)
        if layout == wanted:
            return node
        # [B, (H, D), S] to [B, S, (H, D)] moves H and D together: they are one block. [B, S, (H,
        # D)] to [B, H, S, D] cuts them apart. So: one dimension a block (unflatten), permute, and
        # join blocks (flatten), each only where something is to be done.
        source = into_blocks(layout, wanted)
        target = into_blocks(wanted, layout)
        present = {block for dim in source for block in dim}
        node, order = self._one_block_a_dim(node, source)
        wanted_blocks = {block for dim in target for block in dim}
        # What was repeated along an axis is the same in every entry: the first one is taken.
        for position in reversed(range(len(order))):
            if order[position] not in wanted_blocks:
                node = self.builder.call(aten.select.int, node, position, 0)
        order = [block for block in order if block in wanted_blocks]
        kept = [
            [block for block in dim if block in present or expand or present & set(dim)]
            for dim in target
        ]
        blocks = [block for dim in kept for block in dim]
        permutation = [order.index(block) for block in blocks if block in present]
        if permutation != sorted(permutation):
            node = self.builder.call(aten.permute.default, node, permutation)
        missing = [position for position, block in enumerate(blocks) if block not in present]
        for position in missing:
            node = self.builder.call(aten.unsqueeze.default, node, position)
        if missing:
            extents = [-1 if block in present else self.size(block) for block in blocks]
            node = self.builder.call(aten.expand.default, node, extents)
        for position, joined in enumerate(kept):
            if not joined:
                node = self.builder.call(aten.unsqueeze.default, node, position)
            elif len(joined) > 1:
                last = position + len(joined) - 1
                node = self.builder.call(aten.flatten.using_ints, node, position, last)
        return node

    def _one_block_a_dim(self, node: Node, layout: Sequence[BlockedDim]) -> tuple[Node, list[Dim]]:
        # From the last dimension on, so that positions in front stay what they are.
        for position in reversed(range(len(layout))):
            blocks = layout[position]
            if not blocks:
                node = self.builder.call(aten.squeeze.dim, node, position)
            elif len(blocks) > 1:
                # The last size that is not a number follows by itself.
                unknown = [block for block in blocks if not product(block).is_Integer]
                extents = [-1 if block in unknown[-1:] else self.size(block) for block in blocks]
                node = self.builder.call(aten.unflatten.int, node, position, extents)
        return node, [block for blocks in layout for block in blocks]

    def size(self, block: Dim) -> int | Node:
        """The size of neighbouring axes: a number, or a node that has it."""
        extent = product(block)
        return int(extent) if extent.is_Integer else self.builder.size(extent)


def into_blocks(layout: Layout, other: Layout) -> list[BlockedDim]:
    """Each dimension as blocks of axes that are neighbours in `other`, too."""
    # Two axes stay together if they follow each other in a dimension of both layouts.
    place = {
        axis: (position, offset)
        for position, dim in enumerate(other)
        for offset, axis in enumerate(dim)
    }
    layout_blocks: list[BlockedDim] = []
    for dim in layout:
        blocks: list[list[Axis]] = []
        for axis in dim:
            position, offset = place.get(blocks[-1][-1] if blocks else axis, (-1, 0))
            if blocks and place.get(axis) == (position, offset + 1):
                blocks[-1].append(axis)
            else:
                blocks.append([axis])
        layout_blocks.append(tuple(tuple(block) for block in blocks))
    return layout_blocks
