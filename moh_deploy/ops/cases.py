"""A run of an op that a correct implementation must get right, and how exact it must be.

A case builds its inputs from its name alone: they are the same numbers in every process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.spec import Arrays, Attributes, TensorType

# How far one run of an op may be from its float64 reference, and why.

_FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class OpTolerance:
    """|got - reference| <= absolute + relative * |reference|."""

    absolute: float
    relative: float
    reason: str  # where the error comes from


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


InputBuilder = Callable[[np.random.Generator], Arrays]


@dataclass(frozen=True)
class Case:
    """One named run of an op."""

    name: str  # unique among those of its op; also the seed of the inputs
    op: str  # name of the op
    why: str  # what an implementation that fails it gets wrong
    attributes: Attributes
    # Makes the inputs from a generator: floats in float32, masks and lengths as they are.
    build: InputBuilder
    dtype: str = "float32"  # dtype that the floating-point inputs are rounded to
    # About the largest attention score (or other inner value) of the inputs: rounding grows with
    # it.
    score_bound: float = 8.0

    def __str__(self) -> str:
        return f"{self.op}/{self.name}/{self.dtype}"

    @property
    def tolerance(self) -> OpTolerance:
        """Return the allowed distance of an output from the reference."""
        return op_tolerance_for(self.dtype, score_bound=self.score_bound)

    def in_dtype(self, dtype: str) -> Case:
        """Return the same case with its inputs rounded to another dtype."""
        return replace(self, dtype=dtype)

    def inputs(self) -> tuple[np.ndarray | None, ...]:
        """Build the inputs: C-contiguous, the same at each call, None for an absent one."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        dtype = numpy_dtype(self.dtype)
        return tuple(
            None
            if array is None
            else array.astype(dtype if array.dtype.kind == "f" else array.dtype, order="C")
            for array in self.build(rng)
        )

    def input_types(self) -> tuple[TensorType | None, ...]:
        """Return dtype and shape of each input."""
        return tuple(
            None if array is None else TensorType(array.dtype.name, array.shape)
            for array in self.inputs()
        )


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy dtype of a float type's name; bfloat16 comes from ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# The contract: what a correct output is. Every implementation is judged by this one function.


def find_mismatch(case: Case, outputs: Sequence[np.ndarray]) -> str | None:
    """Compare the outputs of an implementation with the reference.

    Checks number, shape and dtype of the outputs; NaN and Inf exactly where the reference has them;
    0 exactly where the reference is 0 (closed gates, blind queries); every other element within the
    case's tolerance. Elements that the op leaves unspecified may be anything.

    Returns:
        What is wrong, with the worst element, or None if the outputs are right.
    """
    spec = OPS[case.op]
    references = spec.reference(case.inputs(), case.attributes)
    types = spec.shape_rule(case.input_types(), case.attributes)
    if len(outputs) != len(references):
        return f"{case}: {len(outputs)} outputs; expected {len(references)}."
    specified: Sequence[np.ndarray] = [np.ones(reference.shape, bool) for reference in references]
    if spec.specified is not None:
        specified = spec.specified(case.inputs(), case.attributes)
    for output, expected, type_, reference, meant in zip(
        outputs, spec.outputs, types, references, specified, strict=True
    ):
        where = f"{case}: {expected.name}"
        if output.shape != type_.shape or output.dtype.name != type_.dtype:
            return f"{where} is {output.dtype}{output.shape}; expected {type_.dtype}{type_.shape}."
        got = np.where(meant, output.astype(np.float64), reference)
        problem = _find_difference(got, reference, case)
        if problem is not None:
            return f"{where}{problem}"
    return None


def _find_difference(got: np.ndarray, reference: np.ndarray, case: Case) -> str | None:
    """Return the first kind of difference, worded as the rest of a sentence about the output."""
    finite = np.isfinite(reference)
    special = ~finite & (got != reference) & ~(np.isnan(got) & np.isnan(reference))
    if special.any():
        return _element(" differs", got, reference, special)
    exact = (reference == 0) & (got != 0)
    if exact.any():
        return _element(" is not exactly 0", got, reference, exact)
    tolerance = case.tolerance
    with np.errstate(invalid="ignore"):
        error = np.abs(got - reference)
        bound = tolerance.absolute + tolerance.relative * np.abs(reference)
        beyond = finite & ~(error <= bound)
    if beyond.any():
        worst = beyond & (error == np.nanmax(np.where(beyond, error, 0)))
        return _element(" is out of tolerance", got, reference, worst if worst.any() else beyond)
    return None


def _element(what: str, got: np.ndarray, reference: np.ndarray, where: np.ndarray) -> str:
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return (
        f"{what} at {index} ({int(where.sum())} elements): {got[index]:.9g}; "
        f"expected {reference[index]:.9g}."
    )
