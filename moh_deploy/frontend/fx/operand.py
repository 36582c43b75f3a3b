"""A tensor of the graph together with the meaning of its dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout


@dataclass(frozen=True)
class Operand:
    """A tensor of the graph and what its dimensions mean."""

    node: Node
    layout: Layout
