"""MoHQueryProjectionNBits and MoHOutputProjectionNBits: the projections of `projection.py` with
weights of 4 bits. Only weights of open heads are read.

    Y = X W + bias, with W as nbits_product.py has it.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import nbits_product, op_names, spec
from moh_deploy.ops.spec import Arrays, Attributes, OpSpec, TensorType, TensorTypes

_FLOAT = ("float32",)
_BITS = 4


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute either projection in float64.

    Args:
        inputs: X [B, S, K], W [N, ceil(K / 32), 16], gates [B, S, H], scales [N, ceil(K / 32)] and
            optionally bias [N].

    Returns:
        X W + bias, [B, S, N], in float64: also where a gate is closed.
    """
    x, packed, _, scales, bias = (*inputs, None)[:5]
    product = nbits_product.product_of(x, packed, scales, int(attributes["in_features"]))
    return (product if bias is None else product + bias.astype(np.float64),)


def open_columns(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Return a mask of the elements of Q [B, S, H*D] that are specified: those of open heads."""
    gates = inputs[2]
    assert gates is not None, "a required input is absent"
    head_dim = int(attributes["out_features"]) // int(attributes["num_heads"])
    return (np.repeat(gates != 0, head_dim, axis=-1),)


@dataclass(frozen=True)
class NBitsVariant(spec.BodyVariant):
    """Selects one body: whether a bias is added."""

    biased: bool


def variant_of(inputs: TensorTypes, attributes: Attributes) -> NBitsVariant:
    """Return the variant that a node needs."""
    return NBitsVariant(biased=len(inputs) > 4 and inputs[4] is not None)


def function_body(op: str, output: str, variant: NBitsVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of a projection: MatMulNBits, which multiplies every row."""
    product = nbits_product.matmul_nbits_text("X, W, scales", bits=f" = {_BITS}")
    step = f"{output} = {product}"
    if variant.biased:
        step = f"product = {product} {output} = Add (product, bias)"
    inputs = "X, W, gates, scales" + (", bias" if variant.biased else "")
    signature = f"{op} <num_heads, in_features, out_features> ({inputs}) => ({output})"
    return spec.parsed_function(signature, [step], opset=opset, domain=nbits_product.CONTRIB_DOMAIN)


def shape_rule(
    op: str, heads_attribute: str, inputs: TensorTypes, attributes: Attributes
) -> tuple[TensorType, ...]:
    """Return the type of the result, [B, S, N].

    Args:
        heads_attribute: Which of `in_features` and `out_features` the heads divide.
    """
    rows, columns, heads = (
        int(attributes[name]) for name in ("in_features", "out_features", "num_heads")
    )
    if int(attributes[heads_attribute]) % heads:
        raise ExportError(
            f"{op}: {heads_attribute} is {attributes[heads_attribute]}; expected a multiple of its"
            f" {heads} heads."
        )
    names = ("X", "W", "gates", "scales")
    given = (*inputs, None, None, None, None, None)[:5]
    x, weight, gates, scales = (spec.required(op, n, t) for n, t in zip(names, given, strict=False))
    bias = given[4]
    for name, tensor in (("X", x), ("gates", gates)):
        spec.check_tensor(op, name, tensor, _FLOAT, (3,))
    spec.check_equal(op, "last size of X", x.shape[2], rows)
    nbits_product.check_weight(op, weight, scales, rows=rows, columns=columns, bits=_BITS)
    spec.check_equal(op, "number of heads in gates", gates.shape[2], heads)
    spec.check_equal(op, "batch size of gates", gates.shape[0], x.shape[0])
    spec.check_equal(op, "length of gates", gates.shape[1], x.shape[1])
    if bias is not None:
        spec.check_tensor(op, "bias", bias, _FLOAT, (1,))
        spec.check_equal(op, "size of bias", bias.shape[0], columns)
    batch, seq_len = spec.known(x.shape[0], gates.shape[0]), spec.known(x.shape[1], gates.shape[1])
    return (TensorType(x.dtype, (batch, seq_len, columns)),)


def _inputs(x: str) -> tuple[spec.OpInput, ...]:
    return (
        spec.OpInput("X", x, types=_FLOAT),
        spec.OpInput(
            "W",
            "[N, ceil(K / 32), 16]; two numbers in a byte, the first in its lower half.",
            types=spec.PACKED_TYPES,
            constraint="W",
        ),
        spec.OpInput(
            "gates", "[B, S, H]; 0 means that the token did not choose the head.", types=_FLOAT
        ),
        spec.OpInput("scales", "[N, ceil(K / 32)].", types=_FLOAT),
        spec.OpInput("bias", "[N].", optional=True, types=_FLOAT),
    )


def _attributes(heads: str) -> tuple[spec.AttributeSpec, ...]:
    return (
        spec.AttributeSpec("num_heads", f"`H`; {heads}", at_least=1),
        spec.AttributeSpec("in_features", "`K`; rows of the weight.", at_least=1),
        spec.AttributeSpec("out_features", "`N`; columns of the weight.", at_least=1),
    )


MOH_QUERY_PROJECTION_NBITS = OpSpec(
    name=op_names.QUERY_PROJECTION_NBITS,
    doc="Queries of the heads that each token chose, of weights in 4 bits; others are unspecified.",
    inputs=_inputs("[B, S, K]."),
    outputs=(spec.OutputSpec("Q", "[B, S, N]; unspecified where the gate is 0."),),
    attributes=_attributes("head h has the columns from `h*D` up to `(h+1)*D`, `N = H*D`."),
    reference=reference,
    # Kernels skip queries of closed heads; what is there is not compared.
    specified=open_columns,
    shape_rule=partial(shape_rule, op_names.QUERY_PROJECTION_NBITS, "out_features"),
    variant=variant_of,
    body=partial(function_body, op_names.QUERY_PROJECTION_NBITS, "Q"),
    weight=replace(nbits_product.WEIGHT, plain=op_names.QUERY_PROJECTION),
)

MOH_OUTPUT_PROJECTION_NBITS = OpSpec(
    name=op_names.OUTPUT_PROJECTION_NBITS,
    doc="X W + bias of weights in 4 bits, for an X whose rows are 0 where the gate is 0.",
    inputs=_inputs("[B, S, K], 0 where the gate is 0, as MoHAttention writes it."),
    outputs=(spec.OutputSpec("Y", "[B, S, N]."),),
    attributes=_attributes("head h has the rows from `h*D` up to `(h+1)*D`, `K = H*D`."),
    reference=reference,
    shape_rule=partial(shape_rule, op_names.OUTPUT_PROJECTION_NBITS, "in_features"),
    variant=variant_of,
    body=partial(function_body, op_names.OUTPUT_PROJECTION_NBITS, "Y"),
    weight=replace(nbits_product.WEIGHT, plain=op_names.OUTPUT_PROJECTION),
)
