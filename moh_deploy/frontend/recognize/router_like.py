"""What looks like the gates of a router: a tensor, followed back to what was ranked or squashed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, shape
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import is_view, through_views
from moh_deploy.frontend.recognize.routers.selection import SELECTIONS, ends_router

SQUASHES = frozenset(["softmax", "sigmoid", "hardsigmoid", "relu", "gt", "ge", "lt", "le"])
_MATRICES = frozenset(["one_hot", "scatter", "eq", "gt", "ge", "lt", "le"])


@dataclass(frozen=True)
class RouterLike:
    """Follow a tensor back to the projections, attention and products it is computed from.

    Attributes:
        node: What may be gates.
        stops: Tensors that carry attention: a router reads them, and ends there.
        dynamic: Nodes whose values depend on the model's inputs.
    """

    node: Node
    stops: Collection[Node]
    dynamic: Collection[Node]

    @cached_property
    def cone(self) -> list[Node]:
        seen, queue, cone = {self.node}, [self.node], []
        while queue:
            current = queue.pop(0)
            cone.append(current)
            if self._is_end(current):
                continue
            for source in current.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    queue.append(source)
        return cone

    def _is_end(self, node: Node) -> bool:
        if node in self.stops or ends_router(node):
            return True
        # Of two computed tensors, a product with choices as a matrix of 0 and 1 is of the router;
        # any other, such as scores, is what a router reads.
        product = contraction(node)
        if product is None or not product.summed:
            return False
        return not any(op(through_views(operand)) in _MATRICES for operand in product.operands)

    @cached_property
    def selection(self) -> Node | None:
        """What ranks a fixed number of candidates; None where nothing does."""
        for node in self.cone:
            ranked = node.args[0] if op(node) in SELECTIONS else None
            if ranked is None or not is_tensor(ranked) or self._is_end(node):
                continue
            dim = argument(node, "dim", -1)
            if isinstance(dim, int) and _is_counted_along(cast(Node, ranked), dim):
                return node
        return None

    @cached_property
    def weighing(self) -> Node | None:
        """A softmax over a fixed number of candidates; None where there is none."""
        for node in self.cone:
            if op(node) == "softmax" and _is_counted_along(node, cast(int, node.args[1])):
                return node
        return None

    @property
    def ranks_scores(self) -> bool:
        """It ranks products of computed tensors, as scores are, not what was projected."""
        return self.selection is not None and any(
            node in self.stops
            or (sums_product(node) and not ends_router(node) and not projects(node, self.dynamic))
            for node in self.cone
        )

    @cached_property
    def squash(self) -> Node | None:
        """What squashes, nearest to the gates; None where nothing does."""
        return next((node for node in self.cone if op(node) in SQUASHES), None)

    @property
    def is_router(self) -> bool:
        """It ranks candidates, or squashes what was projected from an input."""
        if self.selection is not None:
            return True
        computed = any(node.op == "call_function" and self._is_end(node) for node in self.cone)
        return self.squash is not None and computed and self.node in self.dynamic

    @property
    def takes_one(self) -> bool:
        """What it ranks best is looked up by its index, and weighed by its one score."""
        if self.selection is None:
            return False
        if op(self.selection) in ("argmax", "argsort"):
            return True
        entries = (user for user in self.selection.users if op(user) == "getitem")
        return any(entry.args[1] == 1 and entry.users for entry in entries)

    @property
    def is_cut(self) -> bool:
        """It is one of several entries: `gates[..., 2:3]`, of a loop over heads."""
        for node in self.cone:
            name = op(node)
            if name == "_add_batch_dim":  # of torch.vmap over heads
                return True
            if name == "getitem" and op(cast(Node, node.args[0])) in SPLITS:
                split = cast(Node, node.args[0])
                cut = cast(int, argument(split, "dim", 0))
                if op(split) == "unbind" or shape(node)[cut] == 1:
                    return True
            if name in ("slice", "narrow", "select") and is_tensor(node.args[0]):
                source, dim = cast(Node, node.args[0]), argument(node, "dim", 0)
                twins = [user for user in _readers(through_views(source)) if op(user) == name]
                same = [user for user in twins if argument(user, "dim", 0) == dim]
                if len(same) > 1 and (name == "select" or shape(node)[cast(int, dim)] == 1):
                    return True
        return False


def is_counted(size: Size) -> bool:
    """Heads are so many, whatever the input."""
    return bool(size.is_Integer and size > 1)


def _readers(node: Node) -> Iterator[Node]:
    """What reads a tensor, or a view of it, such as the `x[:]` of `x[:, 1:2]`."""
    for user in node.users:
        if is_view(user):
            yield from _readers(user)
        else:
            yield user


def _is_counted_along(node: Node, dim: int) -> bool:
    extents = shape(node)
    return bool(extents) and is_counted(extents[dim])


def sums_product(node: Node) -> bool:
    """True for a product of two tensors that is summed over some of their dimensions."""
    product = contraction(node)
    return product is not None and bool(product.summed)


def projects(node: Node, dynamic: Collection[Node]) -> bool:
    """True for a product with weights."""
    if op(node) in ("linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution"):
        return True
    product = contraction(node)
    return (
        product is not None
        and bool(product.summed)
        and any(operand not in dynamic for operand in product.operands)
    )


def spread_sizes(gate: Node, whole: Node) -> list[Size] | None:
    """The sizes of gates that are broadcast over what they multiply; None where they are not."""
    given, extents = shape(unexpanded(gate)), shape(whole)
    aligned = zip(reversed(given), reversed(extents), strict=False)
    spread = len(given) < len(extents) or any(a == 1 != b for a, b in aligned)
    return list(given) if spread else None


def unexpanded(gate: Node) -> Node:
    """The tensor that was broadcast by hand."""
    while op(gate) in ("expand", "expand_as", "broadcast_to", "repeat") and is_tensor(gate.args[0]):
        gate = cast(Node, gate.args[0])
    return gate
