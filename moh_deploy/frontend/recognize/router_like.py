"""Find tensors that look like a router's gates, back to the ranked or squashed scores."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, reads_shape_only, shape
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import is_view, through_views
from moh_deploy.frontend.recognize.routers.router import NORMS, SELECTIONS, ends_router
from moh_deploy.frontend.recognize.walk import walk

SQUASHES = frozenset(["softmax", "sigmoid", "hardsigmoid", "relu", "gt", "ge", "lt", "le"])
_MATRICES = frozenset(["one_hot", "scatter", "eq", "gt", "ge", "lt", "le"])


@dataclass(frozen=True)
class RouterLike:
    """Follow a tensor back to the projections, attention and products it is computed from."""

    node: Node
    stops: Collection[Node]  # tensors that carry attention: a router reads them, and ends there
    dynamic: Collection[Node]

    @cached_property
    def cone(self) -> list[Node]:
        """The nodes that it is computed from, nearest first."""
        # gates [B, S, H] back to the projection [B, S, C] -> [B, S, H]: what it reads is the
        # model's, not the router's.
        return list(
            walk(self.node, lambda node: () if self._is_end(node) else node.all_input_nodes)
        )

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
        # topk of [B, S, H] along H; tokens, as many as the input has, are no
        # candidates.
        for node in self.cone:
            ranked = node.args[0] if op(node) in SELECTIONS else None
            dim = argument(node, "dim", -1) if ranked is not None else None
            if not is_tensor(ranked) or not isinstance(dim, int) or self._is_end(node):
                continue
            if _is_counted_along(cast(Node, ranked), dim):
                return node
        return None

    @cached_property
    def weighing(self) -> Node | None:
        """Return a softmax over a fixed number of candidates, or None."""
        found = (node for node in self.cone if op(node) == "softmax")
        return next(
            (node for node in found if _is_counted_along(node, cast(int, node.args[1]))), None
        )

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
        # sigmoid(linear(x)) weighs; sigmoid(x) of the input itself is an activation.
        computed = any(node.op == "call_function" and self._is_end(node) for node in self.cone)
        return self.squash is not None and computed and self.node in self.dynamic

    @property
    def takes_one(self) -> bool:
        """What it ranks best is looked up by its index, and weighed by its one score."""
        if self.selection is None:
            return False
        if op(self.selection) in ("argmax", "argsort"):
            return True
        # max(-1) and topk(1) give (values, indices): experts are looked up by entry 1.
        entries = (user for user in self.selection.users if op(user) == "getitem")
        return any(entry.args[1] == 1 and entry.users for entry in entries)

    @property
    def is_cut(self) -> bool:
        """Tell whether it is one of several entries: `gates[..., 2:3]`, of a loop over heads."""
        for node in self.cone:
            name = op(node)
            if name == "eq" and is_tensor(node.args[0]) and isinstance(node.args[1], int):
                # chosen [B, S, k] == 2, once for each head
                users = cast(Node, node.args[0]).users
                if len({user.args[1] for user in users if op(user) == "eq"}) > 1:
                    return True
            if name == "_add_batch_dim":  # of torch.vmap over heads
                return True
            if name == "getitem" and op(cast(Node, node.args[0])) in SPLITS:
                split = cast(Node, node.args[0])
                cut = cast(int, argument(split, "dim", 0))
                if op(split) == "unbind" or shape(node)[cut] == 1:
                    return True
            if name in ("slice", "narrow", "select") and is_tensor(node.args[0]):
                # gates [B, S, H] -> [B, S, 1] once for each head: the same cut has twins.
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
    # [B, S, H, 1] over heads [B, S, H, D]: a size of 1, or none in front, is broadcast.
    given, extents = shape(unexpanded(gate)), shape(whole)
    aligned = zip(reversed(given), reversed(extents), strict=False)
    spread = len(given) < len(extents) or any(a == 1 != b for a, b in aligned)
    return list(given) if spread else None


def unexpanded(gate: Node) -> Node:
    """The tensor that was broadcast by hand."""
    while op(gate) in ("expand", "expand_as", "broadcast_to", "repeat") and is_tensor(gate.args[0]):
        gate = cast(Node, gate.args[0])
    return gate


_MOVES = frozenset(["gather", "index", "index_select", "take_along_dim"])
_WRITES = frozenset(["scatter", "index_put", "copy", "slice_scatter", "select_scatter"])
_WITHIN_A_TOKEN = frozenset(
    ["slice", "narrow", "select", "getitem", "cat", "stack", "expand", "expand_as", "repeat"]
    + ["roll", "flip", "softmax", "log_softmax", "mean", "sum", "amax", "amin", "var", *SPLITS]
)


def made_by(
    whole: Node, attention: Collection[Node], dynamic: Collection[Node]
) -> tuple[bool, Node]:
    """Find the node that makes a tensor, behind views and functions of elements: the one that
    mixes tokens, if there is one, or else the nearest that does not.
    """

    @cache
    def is_end(node: Node) -> bool:
        if node in attention or node not in dynamic or op(node) in NORMS:
            return True
        if ends_router(node) or projects(node, dynamic):
            return True
        product = contraction(node) if sums_product(node) else None
        return product is not None and weighs_experts(product, attention, dynamic)

    # heads [B, S, H, D] back to the product with values, say, and projected experts [T, E, C] to
    # their projection.
    nearest = None
    for node in walk(whole, lambda node: () if is_end(node) else node.all_input_nodes):
        if is_end(node):
            nearest = nearest or node
        elif not _stays_in_its_token(node, dynamic):
            return True, node
    return False, nearest or whole


def weighs_experts(
    product: Contraction, attention: Collection[Node], dynamic: Collection[Node]
) -> bool:
    """Tell whether a sum weighs what was computed of the same token, by a choice or a softmax."""
    for gate, whole in (product.operands, product.operands[::-1]):
        like = RouterLike(gate, attention, dynamic)
        if like.selection is not None:
            return not like.ranks_scores  # delays, say, are ranked by scores
        if like.weighing is not None and spread_sizes(gate, whole) is not None:
            return not made_by(whole, attention, dynamic)[0]
    return False


def _stays_in_its_token(node: Node, dynamic: Collection[Node]) -> bool:
    name = op(node)
    if is_view(node) or reads_shape_only(node):
        return True
    if sums_product(node):
        return False
    if name in _MOVES:
        # A row of a stored table, or rows by a stored index, say nothing of other tokens.
        source, *index = node.all_input_nodes
        return source not in dynamic or not any(node in dynamic for node in index)
    if name == "index_put":
        return not argument(node, "accumulate", False)
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in node.target.tags
    )
    return is_pointwise or name in _WITHIN_A_TOKEN or name in _WRITES
