"""MoHRouter: from router logits to one gate for each token and head.

    shared gates = stage[0] * Sh * softmax(shared_logits)
    routed gates = stage[1] * k * p / max(sum of the chosen p, eps)   for the k largest p, else 0
    with  p = softmax(routed_logits)  and  stage = 2 * softmax(stage_logits)

Source: Mixture-of-Head attention, arXiv 2410.11842, section 3.2: routing scores of shared and
routed heads, two-stage routing. The factors Sh, k and 2 keep the mean gate near 1, as in trained
models.
"""

from __future__ import annotations

import numpy as np

from moh_deploy.ops import op_names
from moh_deploy.ops.router_function import function_body, variant_of
from moh_deploy.ops.router_shapes import router_shape_rule
from moh_deploy.ops.spec import Arrays, Attributes, AttributeSpec, OpInput, OpSpec, OutputSpec


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHRouter in float64, one token at a time.

    Args:
        inputs: routed_logits [B, S, R], shared_logits [B, S, Sh], stage_logits [B, S, 2]; None for
            each absent one.
        attributes: All attributes of the op.

    Returns:
        gates [B, S, Sh + R] in float64, shared heads first.
    """
    routed, shared, stage = (*inputs, None, None, None)[:3]
    batch, seq_len = next(array.shape[:2] for array in inputs if array is not None)
    top_k, num_shared_heads = int(attributes["top_k"]), int(attributes["num_shared_heads"])
    num_routed = 0 if routed is None else routed.shape[2]

    # 1 is right for shared heads without logits.
    gates = np.ones((batch, seq_len, num_shared_heads + num_routed))
    for b, s in np.ndindex(batch, seq_len):
        # Views of one token's gates: what is written there is in the result.
        shared_gates, routed_gates = np.split(gates[b, s], [num_shared_heads])
        if shared is not None:
            shared_gates[:] = num_shared_heads * _softmax(shared[b, s])
        if routed is not None:
            weighted = attributes["gate_mode"] == "weighted"
            routed_gates[:] = _routed_gates(_softmax(routed[b, s]), top_k, weighted=weighted)
        if stage is not None:
            # Times 2, so that the mean of both is 1.
            shared_weight, routed_weight = 2 * _softmax(stage[b, s])
            shared_gates *= shared_weight
            routed_gates *= routed_weight
    return (gates,)


def _routed_gates(probabilities: np.ndarray, top_k: int, *, weighted: bool) -> np.ndarray:
    """The k largest of the probabilities [R] as gates, 0 elsewhere."""
    # The choice is defined on float32 probabilities: where they are equal, the lowest index wins.
    order = np.argsort(-probabilities.astype(np.float32), kind="stable")
    chosen = np.zeros(probabilities.shape, dtype=bool)
    chosen[order[:top_k]] = True
    if not weighted:
        return chosen.astype(np.float64)
    # Normalised over the chosen heads: their gates have the mean 1.
    kept = np.where(chosen, probabilities, 0)
    gates: np.ndarray = top_k * kept / max(kept.sum(), np.finfo(np.float32).eps)
    return gates


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    # The maximum is taken off, so that exp does not overflow.
    exponentials = np.exp(wide - wide.max())
    probabilities: np.ndarray = exponentials / exponentials.sum()
    return probabilities


MOH_ROUTER = OpSpec(
    name=op_names.ROUTER,
    doc="Gates of every head from router logits: shared heads, then routed heads.",
    inputs=(
        OpInput(
            "routed_logits",
            "[B, S, R]. Absent in a layer whose heads are all shared; then `top_k` is 0.",
            optional=True,
        ),
        OpInput(
            "shared_logits",
            "[B, S, Sh]. Absent: each shared gate is 1 (the usual form with one shared head).",
            optional=True,
        ),
        OpInput(
            "stage_logits",
            "[B, S, 2]: weight of the shared, of the routed heads. Absent: no weighing.",
            optional=True,
        ),
    ),
    outputs=(OutputSpec("gates", "[B, S, Sh + R], shared heads first."),),
    attributes=(
        AttributeSpec(
            "top_k",
            "`k`, the routed heads that each token chooses: 1 to `R`; 0 without routed heads.",
            at_least=0,
        ),
        AttributeSpec("num_shared_heads", "`Sh`.", default=0, at_least=0),
        AttributeSpec(
            "gate_mode",
            "mask: every open gate is 1, and there are no shared or stage logits.",
            "string",
            default="weighted",
            choices=("weighted", "mask"),
        ),
    ),
    reference=reference,
    shape_rule=router_shape_rule,
    variant=variant_of,
    body=function_body,
)
