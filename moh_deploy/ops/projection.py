"""MoHQueryProjection and MoHOutputProjection: the linear maps around MoHAttention.

    Q = X W + bias    results of a head that a token did not choose may be anything:
                      no op reads them
    Y = X W + bias    rows of X that MoHAttention made 0 need not be multiplied

Source: Mixture-of-Head attention, arXiv 2410.11842, section 3: a token that does not choose a head
needs neither its query nor its part of the output projection (equation 4: the sum over heads).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Arrays, Attributes, OpSpec, TensorType, TensorTypes

# The projections as ONNX functions in standard ops: every row, open or not, in one product.

_OUTPUTS = {op_names.QUERY_PROJECTION: "Q", op_names.OUTPUT_PROJECTION: "Y"}


@dataclass(frozen=True)
class ProjectionVariant(spec.BodyVariant):
    """Selects one body of a projection."""

    half: bool  # inputs are float16 or bfloat16: products and sums are in float32 all the same
    biased: bool  # a bias is added


def variant_of(inputs: TensorTypes, attributes: Attributes) -> ProjectionVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    # Gates decide nothing here: what a closed head gets is unspecified, and may as well be
    # computed.
    x, _, _, bias = (*inputs, None)[:4]
    assert x is not None, "a required input is absent"
    return ProjectionVariant(half=x.dtype != "float32", biased=bias is not None)


def function_body(op_name: str, variant: ProjectionVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of a projection for one variant.

    Args:
        op_name: MoHQueryProjection or MoHOutputProjection.
    """
    output = _OUTPUTS[op_name]
    # The gates are a parameter, since nodes give them, and read by kernels alone.
    inputs = "X, W, gates" + (", bias" if variant.biased else "")
    # No casts in float32: a runtime sees the MatMul and Add that it fuses and prepares best.
    steps = f"{output} = MatMul (X, W)"
    if variant.biased:
        steps = f"product = MatMul (X, W) {output} = Add (product, bias)"
    if variant.half:
        # Products and sums in float32, as kernels accumulate, and rounded once at the end.
        wide_bias = "wide_bias = Cast <to = 1> (bias)" if variant.biased else ""
        steps = f"""
            wide_X = Cast <to = 1> (X)
            wide_W = Cast <to = 1> (W)
            product = MatMul (wide_X, wide_W)
            {wide_bias}
            sum = {"Add (product, wide_bias)" if variant.biased else "Identity (product)"}
            {output} = CastLike (sum, X)
        """
    signature = f"{op_name} <num_heads> ({inputs}) => ({output})"
    return spec.parsed_function(signature, [steps], opset=opset)


# The shape rules of the projections: the output's type, and which inputs do not fit together.


def query_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Q, [B, S, H*D].

    Args:
        inputs: Types of X, W, gates and optionally bias.
    """
    return _shape_rule(op_names.QUERY_PROJECTION, inputs, attributes, "columns")


def output_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Y, [B, S, C]; see `query_shape_rule`."""
    return _shape_rule(op_names.OUTPUT_PROJECTION, inputs, attributes, "rows")


def _shape_rule(
    op: str, inputs: TensorTypes, attributes: Attributes, heads_axis: Literal["rows", "columns"]
) -> tuple[TensorType, ...]:
    """`heads_axis`: which axis of W the heads divide."""
    num_heads = int(attributes["num_heads"])
    # Filled up, as a node may leave the bias out.
    *given, bias = (*inputs, None, None, None, None)[:4]
    x, weight, gates = (
        spec.required(op, n, t) for n, t in zip(("X", "W", "gates"), given, strict=True)
    )
    ranks = {"X": 3, "W": 2, "gates": 3, "bias": 1}
    for name, tensor in zip(ranks, (x, weight, gates, bias), strict=True):
        if tensor is not None:
            dtypes = spec.FLOAT_TYPES if name == "X" else (x.dtype,)
            spec.check_tensor(op, name, tensor, dtypes, (ranks[name],))
    # Columns of the query's W are H*D, rows of the output's.
    size = weight.shape[heads_axis == "columns"]
    if isinstance(size, int) and size % num_heads:
        raise ExportError(
            f"{op}: number of {heads_axis} of W is {size}; expected a multiple of its"
            f" {num_heads} heads."
        )
    # X [B, S, rows of W]; gates [B, S, H]; bias [columns of W].
    spec.check_equal(op, "number of rows of W", weight.shape[0], x.shape[2])
    spec.check_equal(op, "batch size of gates", gates.shape[0], x.shape[0])
    spec.check_equal(op, "length of gates", gates.shape[1], x.shape[1])
    spec.check_equal(op, "number of heads in gates", gates.shape[2], num_heads)
    columns = weight.shape[1]
    if bias is not None:
        spec.check_equal(op, "size of bias", bias.shape[0], columns)
        columns = spec.known(columns, bias.shape[0])
    batch, seq_len = spec.known(x.shape[0], gates.shape[0]), spec.known(x.shape[1], gates.shape[1])
    return (TensorType(x.dtype, (batch, seq_len, columns)),)


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute either projection in float64.

    Args:
        inputs: X [B, S, K], W [K, N], gates [B, S, H] and optionally bias [N].

    Returns:
        X W + bias, [B, S, N], in float64: also where a gate is closed.
    """
    x, weight = map(spec.float64, inputs[:2])
    # Gates are not read: a closed head's query may be anything, so it may be this.
    bias = inputs[3] if len(inputs) > 3 else None
    with np.errstate(invalid="ignore"):
        product = x @ weight
    return (product if bias is None else product + bias.astype(np.float64),)


def open_rows(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Return a mask of the elements of Q [B, S, H*D] that are specified: those of open heads."""
    weight, gates = inputs[1], inputs[2]
    assert weight is not None, "a required input is absent"
    assert gates is not None, "a required input is absent"
    # [B, S, H] to [B, S, H * D]: each head's D columns.
    head_dim = weight.shape[1] // int(attributes["num_heads"])
    return (np.repeat(gates != 0, head_dim, axis=-1),)


def _inputs(x: str, weight: str, bias: str) -> tuple[spec.OpInput, ...]:
    return (
        spec.OpInput("X", x),
        spec.OpInput("W", weight),
        spec.OpInput("gates", "[B, S, H]; 0 means that the token did not choose the head."),
        spec.OpInput("bias", bias, optional=True),
    )


_ATTRIBUTES = (
    spec.AttributeSpec(
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
    outputs=(spec.OutputSpec("Q", "[B, S, H*D]; unspecified where the gate is 0."),),
    attributes=_ATTRIBUTES,
    reference=reference,
    # Kernels skip queries of closed heads; what is there is not compared.
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
    outputs=(spec.OutputSpec("Y", "[B, S, C]."),),
    attributes=_ATTRIBUTES,
    reference=reference,
    shape_rule=output_shape_rule,
    variant=variant_of,
    body=partial(function_body, op_names.OUTPUT_PROJECTION),
)
