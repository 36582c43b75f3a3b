"""Lower a raised graph as it was before, but for some nodes that stay in float32."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from moh_deploy.graph.lower_precision.casts import lower_precision
from moh_deploy.graph.lower_precision.policy import LowType, PrecisionPlan

EXACT = frozenset(
    (
        *("Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather"),
        *("GatherElements", "GatherND", "Identity", "Max", "Min", "Neg", "Pad", "Relu", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    )
)
"""Operators that round nothing: in float32 they keep what was made in float32, and cost little."""

_AS_BEFORE = "it was in float32 before"
_FOLLOWS = "it rounds nothing, and reads what is in float32"


def lower_again(
    raised: ir.Model, low: LowType, computed: frozenset[str], keep: Mapping[str, str]
) -> ir.Model:
    """Return a lowered copy of a model that `raise_precision` has raised.

    Args:
        raised: The model, which stays as it is; the copy shares its weights.
        low: What it was lowered to.
        computed: First outputs of the nodes that computed in that: `Raised.low`.
        keep: First outputs of those of them that are to compute in float32 now, with the reason.
            What reads their results and rounds nothing goes with them.
    """
    # In execution order, so that whatever follows a node is met after it.
    model = _copy(raised)
    float32: dict[ir.Node, str] = {}
    kept: set[ir.Node] = set()
    for node in model.graph:
        name = node.outputs[0].name or ""
        # A reader that rounds nothing would round to the low dtype only to cast back: it stays,
        # too.
        if name in keep or (node.op_type in EXACT and _reads(node, kept)):
            kept.add(node)
            float32[node] = keep.get(name, _FOLLOWS)
        # What the first lowering had left in float32.
        elif name not in computed:
            float32[node] = _AS_BEFORE
    lower_precision(model, PrecisionPlan(low, float32))
    return model


def _reads(node: ir.Node, kept: set[ir.Node]) -> bool:
    return any(value is not None and value.producer() in kept for value in node.inputs)


def _copy(model: ir.Model) -> ir.Model:
    """A clone shares its values' types with the original, which lowering changes in place."""
    copy = model.clone()
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            if value.dtype is not None:
                value.type = ir.TensorType(value.dtype)
    return copy
