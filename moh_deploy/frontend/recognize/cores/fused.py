"""`scaled_dot_product_attention` as an attention core."""

import math
from typing import cast

import sympy
import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, fresh_dim, regroup
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, hint, is_tensor, shape, tensor
from moh_deploy.frontend.fx.views import operand_layout
from moh_deploy.frontend.recognize.layer import Core, MaskTerm, Scores


def read_fused(node: Node) -> Core | None:
    """Read a `scaled_dot_product_attention` node; None if it has no dimension of heads."""
    query, key, value = cast(tuple[Node, Node, Node], tuple(node.args[:3]))
    # query [..., Hq, S, D], key [..., Hkv, keys, D], value [..., Hkv, keys, Dv] -> [..., Hq, S, Dv]
    out = tuple(fresh_dim(extent) for extent in shape(node))
    if len(out) < 3:
        return None
    lead, rows, value_axes = out[:-2], out[-2], out[-1]
    contracted, key_axes = fresh_dim(shape(query)[-1]), fresh_dim(shape(key)[-2])
    obstacles: list[str] = []
    batches = _key_value_batches(node, lead, key, value)
    if batches is None:
        batches = (lead, lead)
        obstacles.append("the heads of query and key do not divide")
    scale, mask = argument(node, "scale"), argument(node, "attn_mask")
    if not isinstance(scale, (int, float)):
        scale = 1 / math.sqrt(hint(tensor(query).shape[-1]))
    masks: tuple[MaskTerm, ...] = ()
    if isinstance(mask, Node) and is_tensor(mask):
        # torch: True may attend; a float mask is added to the scores.
        aligned = Operand(mask, operand_layout(mask, (*lead, rows, key_axes)))
        masks = (MaskTerm(aligned, "keep" if tensor(mask).dtype == torch.bool else "add"),)
    scores = Scores(
        query=Operand(query, (*_present(query, lead), rows, contracted)),
        key=Operand(key, (*batches[0], key_axes, contracted)),
        key_axes=key_axes,
        scale=float(scale),
        masks=masks,
        is_causal=bool(argument(node, "is_causal", False)),
    )
    return Core(
        anchor=node,
        scores=scores,
        value=Operand(value, (*batches[1], key_axes, value_axes)),
        output=Operand(node, out),
        value_axes=value_axes,
        obstacles=tuple(obstacles),
    )


def _present(node: Node, lead: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Leading dimensions that the operand itself has; those of size 1 are broadcast."""
    extents = shape(node)[:-2]
    dims = lead[len(lead) - len(extents) :]
    return tuple(() if extent == 1 else dim for extent, dim in zip(extents, dims, strict=True))


def _key_value_batches(
    node: Node, lead: tuple[Dim, ...], key: Node, value: Node
) -> tuple[tuple[Dim, ...], tuple[Dim, ...]] | None:
    if not argument(node, "enable_gqa", False):
        return _present(key, lead), _present(value, lead)
    # Grouped queries: the heads of the query are (kv head, query head of its group), kv major, as
    # torch repeats keys and values. Splitting the axis says so to everybody who holds it.
    batches: list[tuple[Dim, ...]] = []
    for operand in (key, value):
        heads = shape(operand)[-3]
        groups = regroup(lead[-1], (heads, sympy.cancel(shape(node)[-3] / heads)))
        if groups is None:
            return None
        batches.append((*_present(operand, lead)[:-1], groups[0]))
    return batches[0], batches[1]
