"""Put a MoHRouter beside the router it computes, and the logits that it reads into one product."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::router
from moh_deploy.frontend.fx import axes
from moh_deploy.frontend.fx.builder import (
    GraphBuilder,
    LayoutBuilder,
    NotCoveredError,
    Operand,
    UnknownSizeError,
)
from moh_deploy.frontend.fx.graph import add_constant, rank, shape, tensor
from moh_deploy.frontend.fx.known_values import Constants, fixed_value
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import history
from moh_deploy.frontend.recognize.aggregated import Aggregated, WindowSource
from moh_deploy.frontend.recognize.projection import ReadProjection
from moh_deploy.frontend.recognize.routers.router import Finish, Logits, Router
from moh_deploy.frontend.rewrite import rewritten
from moh_deploy.ops import op_names

aten = torch.ops.aten


def insert_router(builder: GraphBuilder, router: Router, gates: Node) -> Node:
    """Insert the MoHRouter for a router that it computes, or ranks the heads of.

    Args:
        gates: [..., H], what the model's own router computes.

    Returns:
        A tensor of the shape of `gates`, from the MoHRouter.
    """
    # Each [B, S, n]; a MoHRouter has heads last and two axes of tokens.
    finish = router.finish
    logits = [
        None if logit is None else _per_token(builder, logit, gates) for logit in router.logits
    ]
    routed = builder.call(
        torch.ops.moh.router.default,
        *logits,
        router.top_k,
        router.num_shared_heads,
        router.gate_mode,
    )
    if finish is not None:
        routed = _finished(builder, finish, routed, router.num_shared_heads or 0, gates)
    routed = builder.cast(routed, tensor(gates).dtype)  # a mask of whole numbers, say
    if rank(gates) == 3:
        return routed
    return builder.call(aten.reshape.default, routed, builder.sizes(shape(gates)))


def insert_fixed_gates(builder: GraphBuilder, gates: Node, program: ExportedProgram) -> Node | None:
    """Insert gates [B, S, H] that no input changes, as a constant that is repeated.

    Returns:
        None where they cannot be computed without an input.
    """
    value = fixed_value(gates, Constants(program))
    if value is None:
        return None
    # By a node even where nothing is repeated: other gates are fed in its place.
    extents = [int(gate) if gate.is_Integer else builder.size(gate) for gate in shape(gates)]
    return builder.call(aten.expand.default, add_constant(program, "gates", value), extents)


def _finished(
    builder: GraphBuilder, finish: Finish, made: Node, num_shared: int, gates: Node
) -> Node:
    """The gates [B, S, H], of those that a MoHRouter made.

    What it made is always the first input: who looks for the router follows it.
    """
    if not num_shared:
        return _weighed(builder, finish, made, gates)
    call, end = builder.call, int(shape(made)[-1])
    shared = call(aten.slice.Tensor, made, -1, 0, num_shared)
    if finish.shared is not None:
        shared = _weighed(builder, finish.shared, shared, gates)
    elif finish.shared_gate != 1.0:
        shared = call(aten.mul.Tensor, shared, finish.shared_gate)
    routed = call(aten.slice.Tensor, made, -1, num_shared, end)
    joined = call(aten.cat.default, [shared, _weighed(builder, finish, routed, gates)], -1)
    return joined if finish.joint is None else _weighed(builder, finish.joint, joined, gates)


def _weighed(builder: GraphBuilder, finish: Finish, routed: Node, gates: Node) -> Node:
    """The gates of the routed heads [B, S, R], of the shared ones, which a MoHRouter made 1, or of
    all together."""
    call = builder.call
    if finish.weights is not None:
        weights = _per_token(builder, finish.weights, gates)
        routed = call(aten.mul.Tensor, builder.cast(routed, tensor(weights).dtype), weights)
    if finish.normalized:
        total = call(aten.sum.dim_IntList, routed, [-1], True)
        # 0 where no head that was kept has a weight, as with an epsilon, and not NaN.
        epsilon = finish.epsilon or torch.finfo(tensor(routed).dtype).tiny
        routed = call(aten.div.Tensor, routed, call(aten.add.Tensor, total, epsilon))
    if finish.scale is not None:
        scale = _per_token(builder, finish.scale, gates)
        routed = call(aten.mul.Tensor, builder.cast(routed, tensor(scale).dtype), scale)
    return routed if finish.factor == 1.0 else call(aten.mul.Tensor, routed, finish.factor)


def _per_token(builder: GraphBuilder, logits: Logits, gates: Node) -> Node:
    """Logits as [B, S, R], the rows in the order of the gates' rows."""
    node, last = logits.node, rank(logits.node) - 1
    if logits.dim != last:
        order = [axis for axis in range(last + 1) if axis != logits.dim]
        node = builder.call(aten.permute.default, node, [*order, logits.dim])
    # Gates [tokens, H] or [B, 1, S, H] are routed as one sequence, and viewed back afterwards.
    rows = shape(gates)[:-1]
    if rank(gates) != 3:
        rows = (axes.size_of(1), math.prod(rows, start=axes.size_of(1)))
    if rank(node) == 3 and shape(node)[:2] == rows:
        return node
    return builder.call(aten.reshape.default, node, builder.sizes((*rows, shape(node)[-1])))


def merge_logits(routed: Node, gates: Node, read: ReadProjection) -> None:
    """Let a MoHRouter read parts of one small projection instead of several smaller ones.

    Nothing happens unless they are projections of one tensor without other readers.
    """
    # x @ [W_routed; W_shared; W_stage]: three products of few columns cost as many launches, and
    # read x three times. One of them, sliced, computes the same numbers.
    router = routed
    while router.target is not torch.ops.moh.router.default:
        router = router.all_input_nodes[0]
    logits = [node for node in router.args if isinstance(node, Node)]
    known: list[_Logits] = []
    for node in logits:
        layout = axes.fresh_layout(shape(node))
        root, root_layout = history(node, layout)[-1]
        projection = read(root)
        if projection is None or rewritten.readers_up_to(root, gates) is None:
            return
        x, weight = projection.operands(root_layout)
        found = _Logits(axes.resolve(layout), x, weight, projection.bias_of(root_layout))
        tokens, columns = axes.flat(found.layout[:2]), found.layout[2]
        if axes.flat(x.layout) != (*tokens, *found.inner):
            return
        if set(axes.flat(weight.layout)) != {*columns, *found.inner}:
            return
        known.append(found)
    if len(known) < 2 or len({(found.x.node, found.bias is None) for found in known}) != 1:
        return
    layouts = LayoutBuilder(GraphBuilder(router.graph, router))
    try:
        merged = _merged(layouts, known)
    except UnknownSizeError:
        return
    stop = 0
    for position, node in enumerate(logits):
        start, stop = stop, stop + int(shape(node)[2])
        part = layouts.builder.call(aten.slice.Tensor, merged, 2, start, stop)
        router.update_arg(router.args.index(logits[position]), part)


@dataclass(frozen=True)
class _Logits:
    """Logits [B, S, n] as a projection: its operands, in the axes of the logits."""

    layout: axes.Layout
    x: Operand
    weight: Operand
    bias: Operand | None

    @property
    def inner(self) -> axes.Dim:
        return tuple(
            axis for axis in axes.flat(self.x.layout) if axis not in set(axes.flat(self.layout))
        )


def _merged(layouts: LayoutBuilder, logits: Sequence[_Logits]) -> Node:
    """All logits behind one another, [B, S, n]."""
    call, first = layouts.builder.call, logits[0]
    weights = [layouts.arrange(logit.weight, (logit.layout[2], logit.inner)) for logit in logits]
    biases = [
        layouts.arrange(logit.bias, (logit.layout[2],))
        for logit in logits
        if logit.bias is not None
    ]
    return call(
        aten.linear.default,
        rewritten.arranged_operand(layouts, first.x, (*first.layout[:2], first.inner)),
        call(aten.cat.default, weights),
        call(aten.cat.default, biases) if biases else None,
    )


# Put a MoHAggregatedAttention beside the windowed-and-pooled attention that it computes.

_DEFAULT_EPSILON = 1e-12
# A bias for each pixel and pooled token grows with the square of the image.
_LARGEST_CONSTANT_BYTES = 1 << 28
# In the order of the op's inputs.
_CONSTANTS = (
    *("query_embedding", "query_scale", "window_bias"),
    *("pooled_bias", "window_tokens", "window_offset"),
)


def insert_aggregated(
    rewrite: rewritten.Rewrite,
    program: ExportedProgram,
    form: Aggregated,
    gates: Node,
    builder: GraphBuilder,
    alone: Callable[[Piece], Piece],
) -> rewritten.Rewrite:
    """Insert the MoHAggregatedAttention of one layer.

    Args:
        form: The layer as the op computes it.
        gates: [B, N, H].
        builder: Inserts in front of the node after the layer's product with the gates.
        alone: Gives a cut of a packed projection as a projection of its own, where there is one.

    Returns:
        The rewrite, with the op and the node whose value replaces the layer's product with its
        gates.
    """
    layer, window = rewrite.layer, form.window
    dtype = tensor(layer.core.output.node).dtype
    operands = rewritten.OperandBuilder(builder, dtype)
    head_axes = rewritten.HeadAxes(
        batch=axes.leaves(layer.batch),
        tokens=axes.leaves(form.query.rows),
        heads=axes.leaves(layer.heads),
        head_dim=axes.leaves(form.query.head_dim),
        value_dim=axes.leaves(form.value.head_dim),
    )

    def rows(source: WindowSource) -> Node:
        """[B, rows, H*D]: rows are pixels, or pooled tokens."""
        piece = source.piece
        # A cut of a packed projection may have been split off as a projection of its own by now.
        trail = [piece] if piece.cuts else trail_of(Operand(piece.node, piece.layout))
        layout = (layer.batch, source.rows, (*layer.heads, *source.head_dim))
        return operands.operand([*map(alone, trail)], layout)

    def constant(name: str) -> Node | None:
        """A constant of the form; None where it changes nothing."""
        value: Tensor | None = getattr(form, name)
        if value is None:
            return None
        if value.numel() * dtype.itemsize > _LARGEST_CONSTANT_BYTES:
            raise NotCoveredError(
                f"its {name.replace('_', ' ')} has {value.numel()} elements, more than are stored"
            )
        path = "_".join(layer.path.split(".")) or "model"
        return add_constant(program, f"{path}_{name}", value.to(dtype))

    sources = (form.query, form.key, form.value, form.pooled_key, form.pooled_value)
    output = builder.call(
        torch.ops.moh.aggregated_attention.default,
        *map(rows, sources),
        operands.cast(gates),
        *map(constant, _CONSTANTS),
        head_axes.num_heads,
        window.height,
        window.width,
        window.kernel_height,
        window.kernel_width,
        form.epsilon is not None,
        _DEFAULT_EPSILON if form.epsilon is None else form.epsilon,
    )
    # A token sees the keys of its window and the pooled ones.
    pooled = int(axes.product(axes.leaves(form.pooled_key.rows)))
    return replace(
        rewrite,
        op=op_names.AGGREGATED_ATTENTION,
        attention=output,
        replacement=operands.replacement(output, head_axes.output(packed=True), layer),
        axes=head_axes,
        num_kv_heads=head_axes.num_heads,
        head_dim=int(axes.product(head_axes.value_dim)),
        kv_len=window.kernel_height * window.kernel_width + pooled,
    )
