"""Nodes that take over from others, once both have been compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

# Who reads a tensor in the end.


def readers_up_to(node: Node, end: Node, swaps: Sequence[Swap] = ()) -> set[Node] | None:
    """All that is computed of a node, if `end` alone brings it to the model's outputs; else None.

    Args:
        swaps: What takes over from other nodes, and thus has their readers.
    """
    # A part of a packed projection has no readers yet: those of the original part will be its own.
    old = {swap.new: swap.old for swap in swaps}
    found, stack = {node}, [node]
    while stack:
        current = stack.pop()
        if current.op == "output":
            return None
        readers = [*current.users, old.get(current, current)]
        fresh = [reader for reader in readers if reader not in found and reader is not end]
        found.update(fresh)
        stack += fresh
    return found


@dataclass(frozen=True)
class Swap:
    """A node and the inserted one that takes over from it.

    Attributes:
        what: Names the new one in messages.
        path: Module path of the old one; empty within a layer, which has one itself.
        replaced: Names of the operators that the old one ends, in execution order.
        inserted: Names of the operators that compute the same.
    """

    old: Node
    new: Node
    what: str
    path: str = ""
    replaced: tuple[str, ...] = ()
    inserted: tuple[str, ...] = ()
