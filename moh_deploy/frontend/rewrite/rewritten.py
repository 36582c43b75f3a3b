"""What is inserted for one layer, to take over from its original operators."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Node

from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.rewrite.attention_form import HeadAxes
from moh_deploy.frontend.rewrite.swap import Swap
from moh_deploy.ops.op_names import AttentionOp


@dataclass(frozen=True)
class Rewrite:
    """The nodes that were inserted for one layer, and what they take over from.

    Attributes:
        layer: The layer as recognised.
        router: How its gates are computed.
        gates: [B, S, H], from the original operators.
        scores: [B, S, candidates], what the router ranks; None where it ranks nothing.
        computed_gates: What the gates are views of: the router's own result, [..., H].
        routed: Replaces `computed_gates`; None where the router stays.
        fixed_gates: [B, S, H], read instead of gates that no input changes; None for other gates,
            and where the attention stays.
        op: `MoHAttention` or `MoHAggregatedAttention`; None where the attention stays.
        attention: The inserted node of that op.
        axes: What its dimensions mean.
        replacement: Replaces `layer.node`; None where the attention stays.
        reason: Why the attention or the router stays; None if both are replaced.
        num_kv_heads, head_dim, kv_len: None where the attention stays.
        swaps: Other nodes that inserted ones take over from: parts of packed projections.
        query_projection: The inserted MoHQueryProjection; None where there is none.
        output_projection: Replaces the linear map that reads the gated heads; None likewise.
        attention_view: [B, S, H * value size], from the original operators: the gated heads; None
            where they have no such view, or none was inserted.
    """

    layer: MoHLayer
    router: Router
    gates: Node
    computed_gates: Node
    scores: Node | None = None
    routed: Node | None = None
    fixed_gates: Node | None = None
    op: AttentionOp | None = None
    attention: Node | None = None
    axes: HeadAxes | None = None
    replacement: Node | None = None
    reason: str | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    kv_len: int | None = None
    swaps: tuple[Swap, ...] = ()
    query_projection: Node | None = None
    output_projection: Swap | None = None
    attention_view: Node | None = None

    @property
    def all_swaps(self) -> tuple[Swap, ...]:
        """The swaps, that of the output projection included."""
        return (
            self.swaps if self.output_projection is None else (*self.swaps, self.output_projection)
        )

    @property
    def kept_view(self) -> Node | None:
        """The view that readers of the model need: of an attention that no op takes over from."""
        return self.attention_view if self.replacement is None else None

    def kept(self, reason: str) -> Rewrite:
        """The same layer left as it is."""
        return replace(
            self,
            routed=None,
            fixed_gates=None,
            op=None,
            attention=None,
            replacement=None,
            reason=reason,
            swaps=(),
            query_projection=None,
            output_projection=None,
        )
