"""Operators without effect: dropout that drops nothing, casts to what is given, transpositions that
undo one another, and what asserts that dtypes are as they were traced.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import fresh_layout
from moh_deploy.frontend.fx.graph import argument, op, shape
from moh_deploy.frontend.fx.views import REORDERS, casts, forward

aten = torch.ops.aten

_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])


def drop_no_op(node: Node) -> None:
    """Let readers read the input of a node that has no effect, and leave out an assertion."""
    if op(node) == "_assert_tensor_metadata":
        node.graph.erase_node(node)
    elif any(user.op == "output" for user in node.users):
        pass  # whose name is the program's
    elif (op(node) in _DROPOUTS and not argument(node, "train")) or _casts_nothing(node):
        # Nothing would erase it later: torch takes an unused dropout for one that is needed.
        node.replace_all_uses_with(cast(Node, node.args[0]))
        node.graph.erase_node(node)
    elif (origin := _transposed_twice(node)) is not None:
        node.replace_all_uses_with(origin)


def _casts_nothing(node: Node) -> bool:
    """`x.float()` where x is that already; torch writes a cast down nevertheless."""
    source = node.args[0] if node.target is aten.to.dtype else None
    return isinstance(source, Node) and not casts(node) and argument(node, "memory_format") is None


def _transposed_twice(node: Node) -> Node | None:
    """The tensor whose dimensions a node transposes back; None where it does not."""
    between = node.args[0] if op(node) in REORDERS else None
    if not isinstance(between, Node) or op(between) not in REORDERS:
        return None
    origin = cast(Node, between.args[0])
    layout = fresh_layout(shape(origin))
    moved = forward(between, layout)
    return origin if moved is not None and forward(node, moved) == layout else None
