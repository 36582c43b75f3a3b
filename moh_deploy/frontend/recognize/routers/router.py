"""The result of reading a router: its form, and the MoHRouter that can take over from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.fx import Node

from moh_deploy.frontend.recognize.routers.selection import Selection
from moh_deploy.ops.routers import RouterForm


@dataclass(frozen=True)
class Logits:
    """A tensor of logits and its dimension of heads; the other dimensions are tokens."""

    node: Node
    dim: int

    def of(self, values: dict[Node, torch.Tensor]) -> torch.Tensor:
        """The values, heads last."""
        return values[self.node].movedim(self.dim, -1)


@dataclass(frozen=True)
class Finish:
    """The weighing behind a MoHRouter, by ordinary operators, of the gates of the routed heads.

        factor * scale * gates * weights / (sum(gates * weights) + epsilon)

    Attributes:
        weights: As large as the routed logits; None for 1.
        normalized: The weighed gates of a token are divided by their sum.
        factor: Of all of them.
        epsilon: What is added to the sum.
        scale: One number for each token; None for 1.
        shared_gate: The gate of each shared head, where there are any.
        shared: Of shared heads that are weighed themselves, likewise; None for `shared_gate`.
        joint: Of all heads together, afterwards; None where there is none.
    """

    weights: Logits | None = None
    normalized: bool = False
    factor: float = 1.0
    epsilon: float = 0.0
    scale: Logits | None = None
    shared_gate: float = 1.0
    shared: Finish | None = None
    joint: Finish | None = None


@dataclass(frozen=True)
class Router:
    """The router of a layer, as a MoHRouter and what weighs its gates, or the reason why it stays.

    Attributes:
        form: One of `moh_deploy.ops.routers`.
        num_shared_heads, top_k: None where the router's form does not tell.
        routed_logits, shared_logits, stage_logits: Inputs of the MoHRouter; all None for `custom`
            and `constant`.
        gate_mode: Attribute of the MoHRouter.
        finish: What is made of the MoHRouter's gates; None where they are the layer's.
        selection: Where heads are ranked; None where none is.
        reason: Why the router stays as it is; None if it becomes a MoHRouter or constant gates.
        fixed_gates: [..., H], the gates that no input changes, of size 1 along dimensions of
            dynamic size; None where inputs decide them.
    """

    form: RouterForm
    num_shared_heads: int | None
    top_k: int | None
    selection: Selection | None
    routed_logits: Logits | None = None
    shared_logits: Logits | None = None
    stage_logits: Logits | None = None
    gate_mode: Literal["weighted", "mask"] = "weighted"
    finish: Finish | None = None
    reason: str | None = None
    fixed_gates: torch.Tensor | None = None

    @property
    def logits(self) -> tuple[Logits | None, Logits | None, Logits | None]:
        """The inputs of the MoHRouter, in its order."""
        return self.routed_logits, self.shared_logits, self.stage_logits
