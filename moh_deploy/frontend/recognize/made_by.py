"""Tell what a tensor is made by: something that mixes tokens, or a projection of each."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.graph import argument, op, reads_shape_only
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import is_view
from moh_deploy.frontend.recognize.router_like import (
    RouterLike,
    projects,
    spread_sizes,
    sums_product,
)
from moh_deploy.frontend.recognize.routers.selection import NORMS, ends_router

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
    queue, seen, nearest = [whole], {whole}, None
    while queue:
        node = queue.pop(0)
        if node in attention or node not in dynamic or _is_projected(node, attention, dynamic):
            nearest = nearest or node
            continue
        if not _stays_in_its_token(node, dynamic):
            return True, node
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return False, nearest or whole


def _is_projected(node: Node, attention: Collection[Node], dynamic: Collection[Node]) -> bool:
    if ends_router(node) or op(node) in NORMS or projects(node, dynamic):
        return True
    if not sums_product(node):
        return False
    return weighs_experts(cast(Contraction, contraction(node)), attention, dynamic)


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
        source, *index = node.all_input_nodes
        return source not in dynamic or not any(node in dynamic for node in index)
    if name == "index_put":
        return not argument(node, "accumulate", False)
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in node.target.tags
    )
    return is_pointwise or name in _WITHIN_A_TOKEN or name in _WRITES
