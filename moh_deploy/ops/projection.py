"""MoHQueryProjection and MoHOutputProjection: the linear maps around MoHAttention.

    Q = X W + bias    what is computed for a head that a token did not choose need not be: nobody
                      reads it
    Y = X W + bias    rows of X that MoHAttention made 0 need not be multiplied

Source: Mixture-of-Head attention, arXiv 2410.11842, section 3: a token that does not choose a head
needs neither its query nor its part of the output projection (equation 4: the sum over heads).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from moh_deploy.ops import op_names
from moh_deploy.ops.projection_function import function_body, variant_of
from moh_deploy.ops.projection_shapes import output_shape_rule, query_shape_rule
from moh_deploy.ops.spec import Arrays, Attributes, AttributeSpec, OpInput, OpSpec, OutputSpec


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute either projection in float64.

    Args:
        inputs: X [B, S, K], W [K, N], gates [B, S, H] and optionally bias [N].
        attributes: All attributes of the op.

    Returns:
        X W + bias, [B, S, N], in float64: also where a gate is closed.
    """
    x, weight = (_float64(array) for array in inputs[:2])
    # Gates are not read: a closed head's query may be anything, so it may be this.
    bias = inputs[3] if len(inputs) > 3 else None
    with np.errstate(invalid="ignore"):
        product = x @ weight
    return (product if bias is None else product + _float64(bias),)


def _float64(array: np.ndarray | None) -> np.ndarray:
    assert array is not None, "a required input is absent"
    return array.astype(np.float64)


def open_rows(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Return a mask of the elements of Q [B, S, H*D] that are specified: those of open heads."""
    weight, gates = inputs[1], inputs[2]
    assert weight is not None, "a required input is absent"
    assert gates is not None, "a required input is absent"
    # [B, S, H] to [B, S, H * D]: each head's D columns.
    head_dim = weight.shape[1] // int(attributes["num_heads"])
    return (np.repeat(gates != 0, head_dim, axis=-1),)


def _inputs(x: str, weight: str, bias: str) -> tuple[OpInput, ...]:
    return (
        OpInput("X", x),
        OpInput("W", weight),
        OpInput("gates", "[B, S, H]; 0 means that the token did not choose the head."),
        OpInput("bias", bias, optional=True),
    )


_ATTRIBUTES = (
    AttributeSpec(
        "num_heads",
        "`H`; head h has the columns of `W` (the rows, in the output projection) from `h*D` up "
        "to `(h+1)*D`.",
        at_least=1,
    ),
)

MOH_QUERY_PROJECTION = OpSpec(
    name=op_names.QUERY_PROJECTION,
    doc="Queries of the heads that each token chose: X W + bias; other rows are unspecified.",
    inputs=_inputs("[B, S, C].", "[C, H*D].", "[H*D]."),
    outputs=(OutputSpec("Q", "[B, S, H*D]; unspecified where the gate is 0."),),
    attributes=_ATTRIBUTES,
    reference=reference,
    # Kernels skip queries of closed heads; what is there is compared by nobody.
    specified=open_rows,
    shape_rule=query_shape_rule,
    variant=variant_of,
    body=partial(function_body, op_names.QUERY_PROJECTION),
)

MOH_OUTPUT_PROJECTION = OpSpec(
    name=op_names.OUTPUT_PROJECTION,
    doc="X W + bias for an X whose rows are 0 where the gate is 0, as MoHAttention writes it.",
    inputs=_inputs(
        "[B, S, H*D], 0 where the gate is 0, as MoHAttention writes it.", "[H*D, C].", "[C]."
    ),
    outputs=(OutputSpec("Y", "[B, S, C]."),),
    attributes=_ATTRIBUTES,
    reference=reference,
    shape_rule=output_shape_rule,
    variant=variant_of,
    body=partial(function_body, op_names.OUTPUT_PROJECTION),
)
