"""Attention that stays as it is, in a form that ONNX has and that every runtime computes alike."""

import math
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import (
    SOFTMAXES,
    argument,
    is_tensor,
    module_path,
    named,
    op,
    rank,
    shape,
    tensor,
)
from moh_deploy.frontend.fx.views import through_views

aten = torch.ops.aten


def prepare_plain_attention(program: ExportedProgram) -> None:
    """Bring every `scaled_dot_product_attention` to rank 4, and its rows without keys to 0.

    The exporter takes rank 4 only. A query that may attend to no key gives 0 in torch; the standard
    operators that the exporter writes give something else.
    """
    for node in list(program.graph_module.graph.nodes):
        if op(node) == "scaled_dot_product_attention":
            mask = argument(node, "attn_mask")
            if isinstance(mask, Node) and is_tensor(mask):
                # `where(some key is visible, attention, 0)` takes over.
                builder = GraphBuilder(program.graph_module.graph, node.next)
                visible = mask
                if tensor(mask).dtype != torch.bool:
                    visible = builder.call(aten.ne.Scalar, mask, -math.inf)
                some = builder.call(aten.any.dim, visible, -1, True)
                result = builder.call(aten.where.ScalarOther, some, node, 0)
                node.replace_all_uses_with(result, lambda user, new=result: user is not new)
            if rank(node) != 4:
                _use_rank_4(GraphBuilder(program.graph_module.graph, node), node)
    program.graph_module.recompile()


def _use_rank_4(builder: GraphBuilder, node: Node) -> None:
    """Rank 3 gets one head; leading dimensions of more than rank 4 are flattened."""
    operands = list(cast(tuple[Node, Node, Node], tuple(node.args[:3])))
    mask = argument(node, "attn_mask")
    if rank(node) == 3:
        operands = [builder.call(aten.unsqueeze.default, operand, 1) for operand in operands]
        if isinstance(mask, Node) and rank(mask) == 3:
            mask = builder.call(aten.unsqueeze.default, mask, 1)
    else:
        leading = {shape(operand)[:-3] for operand in operands}
        if len(leading) > 1 or (isinstance(mask, Node) and rank(mask) > 2):
            return  # broadcast leading dimensions: the exporter names what it cannot do
        last = rank(node) - 4
        operands = [builder.call(aten.flatten.using_ints, operand, 0, last) for operand in operands]
    attention = builder.call(
        aten.scaled_dot_product_attention.default,
        *operands,
        mask,
        0.0,
        argument(node, "is_causal", False),
        scale=argument(node, "scale"),
        enable_gqa=argument(node, "enable_gqa", False),
    )
    if rank(node) == 3:
        restored = builder.call(aten.squeeze.dim, attention, 1)
    else:
        restored = builder.call(aten.view.default, attention, builder.sizes(shape(node)))
    node.replace_all_uses_with(restored)


# Attention whose scores Python functions change: torch traces it, ONNX has no such operator.


def refuse_flex_attention(program: ExportedProgram) -> None:
    """Say what to call instead of `flex_attention`.

    Raises:
        ExportError: Naming the first line and all modules that call it.
    """
    calls = [node for node in program.graph.nodes if op(node) == "flex_attention"]
    if calls:
        callers = [".".join(module_path(node)) or "the model itself" for node in calls]
        raise ExportError(
            f"{named(calls[0])} has no form in ONNX; called in"
            f" {', '.join(dict.fromkeys(callers))}.",
            hint="Under torch.compiler.is_exporting(), call F.scaled_dot_product_attention instead:"
            " what score_mod adds as a float attn_mask [B, H, S, T], what mask_mod allows as a bool"
            " one. The package is compared with the model as it runs, with flex_attention.",
        )


# Tell the output of an attention before anything is recognised.

WEIGHING_PRODUCTS = frozenset(["matmul", "bmm", "einsum"])


def is_attention(node: Node) -> bool:
    """The product of a softmax with values, through views; fused or written out."""
    if not is_tensor(node) or rank(node) < 3:
        return False
    node = through_views(node)
    if op(node) == "scaled_dot_product_attention":
        return True
    return op(node) in WEIGHING_PRODUCTS and any(
        op(through_views(source)) in SOFTMAXES for source in node.all_input_nodes
    )
