"""Nodes that take over from others, once both have been compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node


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
