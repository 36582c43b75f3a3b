"""Nodes that take over from others, once both have been compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node


@dataclass(frozen=True)
class Swap:
    """A node and the inserted one that takes over from it.

    Attributes:
        what: Names the new one in messages.
    """

    old: Node
    new: Node
    what: str
