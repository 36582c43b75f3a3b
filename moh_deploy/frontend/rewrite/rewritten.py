"""What is inserted for one layer, to take over from its original operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, leaves, product
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.rewrite.operands import Swap
from moh_deploy.ops.op_names import AttentionOp

# View what each layer's attention computes in one form, to record a fingerprint of it.


def view_attention(program: ExportedProgram, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
    """Insert, for each layer, a view [B, S, H * value size] of what the original operators compute:
    the heads, each multiplied by its gate.

    After all else is inserted: who reads a value decides what may take its place.
    """
    graph = program.graph_module.graph
    viewed = [
        replace(
            rewrite,
            attention_view=_view(rewrite.layer, GraphBuilder(graph, rewrite.layer.node.next)),
        )
        for rewrite in rewrites
    ]
    program.graph_module.recompile()
    return viewed


def drop_views(rewrites: Sequence[Rewrite]) -> None:
    """Take back the views of attentions that an op takes over from: it may stand behind them."""
    for rewrite in rewrites:
        node = None if rewrite.replacement is None else rewrite.attention_view
        while node is not None and node is not rewrite.layer.node and not node.users:
            source = node.all_input_nodes[0]
            node.graph.erase_node(node)
            node = source


def _view(layer: MoHLayer, builder: GraphBuilder) -> Node | None:
    """None where batch and tokens are no axes of it, or a size cannot be expressed."""
    # [B, H, S, D] or [B, S, H, D] -> [B, S, H*D], of which a fingerprint is taken for each token.
    batch, tokens, heads = leaves(layer.batch), leaves(layer.tokens), leaves(layer.heads)
    layout = flat(layer.layout)
    if not {*batch, *tokens} <= set(layout):
        return None
    # The sum over the heads is viewed where the model has nothing else: [B, S, value size].
    inner = tuple(axis for axis in layout if axis not in {*batch, *tokens, *heads})
    summed = tuple(axis for axis in heads if axis in layout)
    wanted: Layout = (batch, tokens, (*summed, *inner))
    try:
        return LayoutBuilder(builder).arrange(Operand(layer.node, layer.layout), wanted)
    except UnknownSizeError:
        return None


# The axes of a layer by the names that the attention ops give them.


@dataclass(frozen=True)
class HeadAxes:
    """The axes of a layer that its attention and its projections have to meet: B, S, Hq, D and Dv.

    Attributes:
        heads: Major first.
        head_dim, value_dim: Of one head of the queries and of the output.
    """

    batch: Dim
    tokens: Dim
    heads: Dim
    head_dim: Dim
    value_dim: Dim

    @property
    def num_heads(self) -> int:
        return int(product(self.heads))

    def query(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.head_dim, packed)

    def output(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.value_dim, packed)

    def _layout(self, heads: Dim, rows: Dim, columns: Dim, packed: bool) -> Layout:
        if packed:
            return (self.batch, rows, (*heads, *columns))
        return (self.batch, heads, rows, columns)


@dataclass(frozen=True)
class AttentionForm(HeadAxes):
    """The axes of a layer as MoHAttention's: those of its heads, and Hkv and T."""

    kv_heads: Dim
    keys: Dim

    def inputs(self, *, packed: bool) -> tuple[Layout, Layout, Layout]:
        """The layouts of query, key and value."""
        key = self._layout(self.kv_heads, self.keys, self.head_dim, packed)
        value = self._layout(self.kv_heads, self.keys, self.value_dim, packed)
        return self.query(packed=packed), key, value


@dataclass(frozen=True)
class Rewrite:
    """The nodes that were inserted for one layer, and what they take over from.

    Attributes:
        gates: [B, S, H], from the original operators.
        scores: [B, S, candidates], what the router ranks; None where it ranks nothing.
        computed_gates: What the gates are views of: the router's own result, [..., H].
        routed: Replaces `computed_gates`; None where the router stays.
        fixed_gates: [B, S, H], read instead of gates that no input changes; None for other gates,
            and where the attention stays.
        op: `MoHAttention` or `MoHAggregatedAttention`; None where the attention stays.
        replacement: Replaces `layer.node`; None where the attention stays.
        reason: Why the attention or the router stays; None if both are replaced.
        hidden_by: The input that tells a causal layer which keys are padding; None without one.
        mask: What structure the layer's masks have, or why none was found; None without masks.
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
    hidden_by: Node | None = None
    mask: str | None = None
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
