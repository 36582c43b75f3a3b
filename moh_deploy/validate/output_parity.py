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
from moh_deploy.validate.tolerances import tolerance_for


def compare_output(
    name: str, vectors: str, got: Array | None, reference: Array, *, precision: str | None = None
) -> OutputParity:
    """Compare an output element by element.

    The tolerance is that of the reference's dtype, or of the model's precision where that is
    coarser: logits that are cast to float32 still carry the rounding of half precision.

    Args:
        name: The output.
        vectors: Label of the vector set.
        got: What the runtime returned; None if it returned no such output.
        reference: What is expected.
        precision: Of the model; None where only the dtype is known.
    """
    what = f"output '{name}' of vectors {vectors}"
    mismatch = structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    error = abs_error(got, reference)
    max_error, reference_max = largest(error), largest_finite(reference)
    rules = [tolerance_for(reference.dtype.name)]
    if precision is not None and "float" in reference.dtype.name:
        rules.append(tolerance_for(precision))
    limit = max(rule.limit(reference_max) for rule in rules)
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
