"""How far one run of an op may be from its float64 reference, and why."""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class OpTolerance:
    """|got - reference| <= absolute + relative * |reference|.

    Attributes:
        reason: Where the error comes from.
    """

    absolute: float
    relative: float
    reason: str


OP_TOLERANCES = {
    "float32": OpTolerance(
        3e-6,
        3e-6,
        "Sums of up to a few hundred float32 products of order 1, in any order: "
        "at most some 25 units in the last place.",
    ),
    "float16": OpTolerance(
        2e-3,
        2e-3,
        "The result is rounded to 11 bits (5e-4). Matrix units may also round each softmax weight "
        "to 11 bits before the product with V: another 5e-4 of the largest value (about 4).",
    ),
    "bfloat16": OpTolerance(
        1.6e-2,
        1.6e-2,
        "The result is rounded to 8 bits (4e-3). Matrix units may also round each softmax weight "
        "to 8 bits before the product with V: another 4e-3 of the largest value (about 4).",
    ),
}


def op_tolerance_for(dtype: str, *, score_bound: float) -> OpTolerance:
    """Return the tolerance of a run.

    Args:
        dtype: Dtype of inputs and outputs.
        score_bound: Size of the largest attention score. A float32 score carries that many units
            of rounding error, and softmax turns an absolute error of a score into a relative one of
            its weight.
    """
    base = OP_TOLERANCES[dtype]
    growth = 4 * _FLOAT32_EPS * score_bound
    return OpTolerance(base.absolute + growth, base.relative + growth, base.reason)
