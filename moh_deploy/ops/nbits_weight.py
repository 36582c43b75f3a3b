"""How a weight of few bits is stored: in blocks, as com.microsoft's MatMulNBits has it.

    W[k, n] = scales[n, k / 32] * (w[n, k] - 2^(bits - 1)),    w in 0 .. 2^bits - 1

Source: ONNX Runtime, docs/ContribOperators.md, with `block_size` 32 and no zero points.
"""

from __future__ import annotations

import numpy as np

from moh_deploy.ops.shape_checks import check_equal, check_tensor
from moh_deploy.ops.spec import PACKED_TYPES, TensorType

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
