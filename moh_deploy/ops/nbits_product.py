"""MoHMatMulNBits: a product with a weight of 4 or 8 bits, as it is stored for com.microsoft's
MatMulNBits.

    Y = X W,    W[k, n] = scales[n, k / 32] * (w[n, k] - 2^(bits - 1)),    w in 0 .. 2^bits - 1

Source: ONNX Runtime, docs/ContribOperators.md, with `block_size` 32 and no zero points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names
from moh_deploy.ops.spec import (
    PACKED_TYPES,
    Arrays,
    Attributes,
    AttributeSpec,
    OpInput,
    OpSpec,
    OutputSpec,
    TensorType,
    TensorTypes,
    check_equal,
    check_tensor,
    parsed_function,
    required,
)

# How a weight of few bits is stored: in blocks, as com.microsoft's MatMulNBits has it.
#
# W[k, n] = scales[n, k / 32] * (w[n, k] - 2^(bits - 1)), w in 0 .. 2^bits - 1
#
# Source: ONNX Runtime, docs/ContribOperators.md, with `block_size` 32 and no zero points.

BLOCK = 32
"""Numbers of a column, one below the other, that share a scale."""

ACCURACY_LEVEL = 4
"""What MatMulNBits reads is rounded to 8 bits when it is met, a scale for each block."""

CONTRIB_DOMAIN = "com.microsoft"


def unpacked(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the weights in float64: [blocks * 32, N] of [N, blocks, 4 * bits] and [N, blocks]."""
    bits = packed.shape[2] * 8 // BLOCK
    digits = packed.astype(np.float64)
    if bits == 4:
        # Of two numbers in a byte, the first is in the lower half.
        digits = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float64)
    # [N, blocks, 32]
    numbers = digits.reshape(*packed.shape[:2], BLOCK) - 2 ** (bits - 1)
    weight: np.ndarray = (numbers * scales.astype(np.float64)[..., None]).reshape(len(packed), -1).T
    return weight


def matmul_nbits_text(inputs: str, *, bits: str) -> str:
    """Return the product of a function body, whose sizes are the attributes of the op.

    Args:
        bits: What follows the attribute's name: ` = 4`, or `: int = @bits` for one of the op's.

    Not DequantizeLinear and MatMul: a session would hold the weights in float32, eight times as
    large as they are stored (docs/adr/0066).
    """
    return (
        f"{CONTRIB_DOMAIN}.MatMulNBits <K: int = @in_features, N: int = @out_features,"
        f" bits{bits}, block_size = {BLOCK},"
        f" accuracy_level = {ACCURACY_LEVEL}> ({inputs})"
    )


def check_weight(
    op: str, weight: TensorType, scales: TensorType, *, rows: int, columns: int, bits: int
) -> None:
    """Refuse a weight and scales that are not those of such a matrix.

    Raises:
        ExportError: A dtype, rank or size is another one.
    """
    check_tensor(op, "scales", scales, ("float32",), (2,))
    check_tensor(op, "W", weight, PACKED_TYPES, (3,))
    blocks = -(-rows // BLOCK)
    for name, got, expected in (
        ("columns of W", weight.shape[0], columns),
        ("blocks of W", weight.shape[1], blocks),
        ("bytes of a block of W", weight.shape[2], BLOCK * bits // 8),
        ("columns of scales", scales.shape[0], columns),
        ("blocks of scales", scales.shape[1], blocks),
    ):
        check_equal(op, f"number of {name}", got, expected)


RANKS = (2, 3, 4)
"""Of what is multiplied."""

_BITS = (4, 8)
_FLOAT = ("float32",)


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute the product in float64.

    Args:
        inputs: X [..., K], W [N, ceil(K / 32), 4 * bits], scales [N, ceil(K / 32)].
        attributes: All attributes of the op.

    Returns:
        X W, [..., N], in float64.
    """
    x, packed, scales = inputs
    assert x is not None, "a required input is absent"
    assert packed is not None, "a required input is absent"
    assert scales is not None, "a required input is absent"
    weight = unpacked(packed, scales)[: int(attributes["in_features"])]
    with np.errstate(invalid="ignore"):
        return (x.astype(np.float64) @ weight,)


@dataclass(frozen=True)
class NBitsProductVariant:
    """There is one body."""

    def key(self) -> str:
        """Return the variant's name."""
        return "plain"


def variant_of(inputs: TensorTypes, attributes: Attributes) -> NBitsProductVariant:
    """Return the variant that a node needs."""
    return NBitsProductVariant()


def function_body(variant: NBitsProductVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body: MatMulNBits itself."""
    product = matmul_nbits_text("X, W, scales", bits=": int = @bits")
    signature = f"{op_names.MATMUL_NBITS} <in_features, out_features, bits> (X, W, scales) => (Y)"
    return parsed_function(signature, [f"Y = {product}"], opset=opset, domain=CONTRIB_DOMAIN)


def nbits_product_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of the result, [..., N].

    Raises:
        ExportError: A dtype, rank, number of bits or size does not fit the others.
    """
    op = op_names.MATMUL_NBITS
    bits = int(attributes["bits"])
    if bits not in _BITS:
        raise ExportError(f"{op}: bits is {bits}; expected {' or '.join(map(str, _BITS))}.")
    rows, columns = int(attributes["in_features"]), int(attributes["out_features"])
    x, weight, scales = (
        required(op, name, given)
        for name, given in zip(("X", "W", "scales"), (*inputs, None, None, None), strict=False)
    )
    check_tensor(op, "X", x, _FLOAT, RANKS)
    check_equal(op, "last size of X", x.shape[-1], rows)
    check_weight(op, weight, scales, rows=rows, columns=columns, bits=bits)
    return (TensorType(x.dtype, (*x.shape[:-1], columns)),)


MOH_MATMUL_NBITS = OpSpec(
    name=op_names.MATMUL_NBITS,
    doc="X W, for a weight in 4 or 8 bits.",
    inputs=(
        OpInput("X", "[..., K], of 2 to 4 dimensions.", types=_FLOAT),
        OpInput(
            "W",
            "[N, ceil(K / 32), 4 * bits]; of two numbers in a byte the first is in its lower half.",
            types=PACKED_TYPES,
            constraint="W",
        ),
        OpInput("scales", f"[N, ceil(K / {BLOCK})].", types=_FLOAT),
    ),
    outputs=(OutputSpec("Y", "[..., N]."),),
    attributes=(
        AttributeSpec("in_features", "`K`; rows of the weight.", at_least=1),
        AttributeSpec("out_features", "`N`; columns of the weight.", at_least=1),
        AttributeSpec("bits", "4 or 8; of a number of the weight.", at_least=1),
    ),
    reference=reference,
    shape_rule=nbits_product_shape_rule,
    variant=variant_of,
    body=function_body,
)
