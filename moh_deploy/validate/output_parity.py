"""Compare one output with its reference."""

from __future__ import annotations

import math

from moh_deploy.npz import Array
from moh_deploy.validate.differences import (
    Float64Array,
    Place,
    abs_error,
    describe_worst,
    largest,
    largest_finite,
    structural_mismatch,
    worst_index,
)
from moh_deploy.validate.parity_report import OutputParity
from moh_deploy.validate.tolerances import Tolerance


def compare_output(
    name: str,
    vectors: str,
    got: Array | None,
    reference: Array,
    tolerance: Tolerance,
    *,
    floor: float | None = None,
    forced: bool = False,
    place: Place = list,
) -> OutputParity:
    """Compare an output element by element.

    Args:
        name: The output.
        vectors: Label of the vector set.
        got: What the runtime returned; None if it returned no such output.
        reference: What is expected.
        tolerance: The rule for this output.
        floor: The error of this output that rounding noise makes; None if it is not known.
        forced: The reference gates were fed to every layer.
        place: From an index into these arrays to what is shown of it.
    """
    what = f"output '{name}' of vectors {vectors}"
    mismatch = structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    error = abs_error(got, reference)
    max_error, reference_max = largest(error), largest_finite(reference)
    limit = tolerance.limit(reference_max, floor)
    # Not `>`: a NaN must fail.
    equal = max_error <= limit
    return OutputParity(
        name=name,
        vectors=vectors,
        max_abs_error=max_error,
        max_rel_error=max_error / reference_max if reference_max else max_error,
        tolerance=limit,
        reason=None if equal else describe_worst(what, got, reference, error, limit, place),
        floor=floor,
        forced=forced,
        elements=error.size,
    )


def unjudged_output(name: str, vectors: str, got: Array | None, reference: Array) -> OutputParity:
    """Measure an output behind an explained flip, where no bound is known: it must be finite."""
    what = f"output '{name}' of vectors {vectors}"
    mismatch = structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    errors, reference_max = abs_error(got, reference), largest_finite(reference)
    error = largest(errors)
    return OutputParity(
        name=name,
        vectors=vectors,
        max_abs_error=error,
        max_rel_error=error / reference_max if reference_max else error,
        tolerance=None,
        elements=reference.size,
        reason=None if math.isfinite(error) else _not_finite(what, reference, errors),
    )


def _not_finite(what: str, reference: Array, error: Float64Array) -> str:
    if math.isnan(float(reference[worst_index(error)])):
        return f"{what} cannot be compared: the reference is itself NaN."
    return f"{what} is not finite where the reference is."


def incomparable_output(name: str, vectors: str, reason: str | None) -> OutputParity:
    """Return the entry of an output that has no errors to measure."""
    return OutputParity(name, vectors, math.nan, math.nan, 0.0, reason)
