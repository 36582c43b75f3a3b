"""Compare one output with its reference."""

from __future__ import annotations

import math

from moh_deploy.npz import Array
from moh_deploy.validate.differences import (
    abs_error,
    describe_worst,
    largest,
    largest_finite,
    structural_mismatch,
)
from moh_deploy.validate.parity_report import OutputParity
from moh_deploy.validate.tolerances import Tolerance


def compare_output(
    name: str, vectors: str, got: Array | None, reference: Array, tolerance: Tolerance
) -> OutputParity:
    """Compare an output element by element.

    Args:
        name: The output.
        vectors: Label of the vector set.
        got: What the runtime returned; None if it returned no such output.
        reference: What is expected.
        tolerance: The rule for this output.
    """
    what = f"output '{name}' of vectors {vectors}"
    mismatch = structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    error = abs_error(got, reference)
    max_error, reference_max = largest(error), largest_finite(reference)
    limit = tolerance.limit(reference_max)
    # Not `>`: a NaN must fail.
    equal = max_error <= limit
    return OutputParity(
        name=name,
        vectors=vectors,
        max_abs_error=max_error,
        max_rel_error=max_error / reference_max if reference_max else max_error,
        tolerance=limit,
        reason=None if equal else describe_worst(what, got, reference, error, limit),
    )


def incomparable_output(name: str, vectors: str, reason: str | None) -> OutputParity:
    """Return the entry of an output that has no errors to measure."""
    return OutputParity(name, vectors, math.nan, math.nan, 0.0, reason)
