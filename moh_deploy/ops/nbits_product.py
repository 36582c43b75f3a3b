"""MoHMatMulNBits: a product with a weight of 4 or 8 bits, as it is stored for com.microsoft's
MatMulNBits.

    Y = X W,    W[k, n] = scales[n, k / 32] * (w[n, k] - 2^(bits - 1)),    w in 0 .. 2^bits - 1

Source: ONNX Runtime, docs/ContribOperators.md, with `block_size` 32 and no zero points.
"""

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Arrays, Attributes, OpSpec, TensorType, TensorTypes

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
    """Refuse a weight and scales that are not those of such a matrix."""
    spec.check_tensor(op, "scales", scales, ("float32",), (2,))
    spec.check_tensor(op, "W", weight, spec.PACKED_TYPES, (3,))
    blocks = -(-rows // BLOCK)
    for name, got, expected in (
        ("columns of W", weight.shape[0], columns),
        ("blocks of W", weight.shape[1], blocks),
        ("bytes of a block of W", weight.shape[2], BLOCK * bits // 8),
        ("columns of scales", scales.shape[0], columns),
        ("blocks of scales", scales.shape[1], blocks),
    ):
        spec.check_equal(op, f"number of {name}", got, expected)


RANKS = (2, 3, 4)
"""Of what is multiplied."""

_BITS = (4, 8)
_FLOAT = ("float32",)


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute the product in float64.

    Args:
        inputs: X [..., K], W [N, ceil(K / 32), 4 * bits], scales [N, ceil(K / 32)].

    Returns:
        X W, [..., N], in float64.
    """
    return (product_of(inputs[0], inputs[1], inputs[2], int(attributes["in_features"])),)


def product_of(
    x: np.ndarray | None, packed: np.ndarray | None, scales: np.ndarray | None, rows: int
) -> np.ndarray:
    """Return X [..., K] times a packed weight of so many rows, in float64."""
    assert packed is not None, "a required input is absent"
    assert scales is not None, "a required input is absent"
    with np.errstate(invalid="ignore"):
        product: np.ndarray = spec.float64(x) @ unpacked(packed, scales)[:rows]
    return product


def function_body(variant: spec.BodyVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the one body: MatMulNBits itself."""
    product = matmul_nbits_text("X, W, scales", bits=": int = @bits")
    signature = f"{op_names.MATMUL_NBITS} <in_features, out_features, bits> (X, W, scales) => (Y)"
    return spec.parsed_function(signature, [f"Y = {product}"], opset=opset, domain=CONTRIB_DOMAIN)


def nbits_product_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of the result, [..., N]."""
    op = op_names.MATMUL_NBITS
    bits = int(attributes["bits"])
    if bits not in _BITS:
        raise ExportError(f"{op}: bits is {bits}; expected {' or '.join(map(str, _BITS))}.")
    rows, columns = int(attributes["in_features"]), int(attributes["out_features"])
    x, weight, scales = (
        spec.required(op, name, given)
        for name, given in zip(("X", "W", "scales"), (*inputs, None, None, None), strict=False)
    )
    spec.check_tensor(op, "X", x, _FLOAT, RANKS)
    spec.check_equal(op, "last size of X", x.shape[-1], rows)
    check_weight(op, weight, scales, rows=rows, columns=columns, bits=bits)
    return (TensorType(x.dtype, (*x.shape[:-1], columns)),)


def unpack(attributes: Attributes) -> tuple[list[str], int]:
    """Say in standard operators what `unpacked` computes; see `spec.StoredWeight`."""
    bits, rows = int(attributes.get("bits", 4)), int(attributes["in_features"])
    digits = ["digits = Identity (W)"]
    if bits == 4:  # [N, blocks, 16] to [N, blocks, 16, 2]: two in a byte, the lower half first
        digits = [
            "mask = Constant <value = uint8[1] {15}> () four = Constant <value = uint8[1] {4}> ()",
            'low = BitwiseAnd (W, mask) high = BitShift <direction = "RIGHT"> (W, four)',
            "low_apart = Unsqueeze (low, last) high_apart = Unsqueeze (high, last)",
            "digits = Concat <axis = -1> (low_apart, high_apart)",
        ]
    return [
        "last = Constant <value_ints = [-1]> ()",
        *digits,
        f"zero = Constant <value_float = {float(2 ** (bits - 1))}> ()",
        f"wide = Cast <to = {onnx.TensorProto.FLOAT}> (digits) around_0 = Sub (wide, zero)",
        f"blocks = Constant <value_ints = [0, -1, {BLOCK}]> ()",
        "in_blocks = Reshape (around_0, blocks)",  # [N, blocks, 32]
        "scale = Unsqueeze (scales, last) numbers = Mul (in_blocks, scale)",
        "columns = Constant <value_ints = [0, -1]> () padded = Reshape (numbers, columns)",
        "start = Constant <value_ints = [0]> () axis = Constant <value_ints = [1]> ()",
        f"stop = Constant <value_ints = [{rows}]> () short = Slice (padded, start, stop, axis)",
        "matrix = Transpose <perm = [1, 0]> (short)",
    ], 2**bits - 1


WEIGHT = spec.StoredWeight("int4", unpack)

_ONLY = spec.BodyVariant()

MOH_MATMUL_NBITS = OpSpec(
    name=op_names.MATMUL_NBITS,
    doc="X W, for a weight in 4 or 8 bits.",
    inputs=(
        spec.OpInput("X", "[..., K], of 2 to 4 dimensions.", types=_FLOAT),
        spec.OpInput(
            "W",
            "[N, ceil(K / 32), 4 * bits]; of two numbers in a byte the first is in its lower half.",
            types=spec.PACKED_TYPES,
            constraint="W",
        ),
        spec.OpInput("scales", f"[N, ceil(K / {BLOCK})].", types=_FLOAT),
    ),
    outputs=(spec.OutputSpec("Y", "[..., N]."),),
    attributes=(
        spec.AttributeSpec("in_features", "`K`; rows of the weight.", at_least=1),
        spec.AttributeSpec("out_features", "`N`; columns of the weight.", at_least=1),
        spec.AttributeSpec("bits", "4 or 8; of a number of the weight.", at_least=1),
    ),
    reference=reference,
    shape_rule=nbits_product_shape_rule,
    variant=lambda inputs, attributes: _ONLY,
    body=function_body,
    weight=WEIGHT,
)
