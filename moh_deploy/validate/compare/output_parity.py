"""Compare one output with its reference."""

import math

from moh_deploy.package import Spread, beside_masks, spread
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.checks import top_1_agreement
from moh_deploy.validate.compare.parity_result import OutputParity
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.reference import differences


def compare_output(
    name: str,
    vectors: str,
    got: Array | None,
    reference: Array,
    tolerance: Tolerance,
    *,
    floor: Spread | None = None,
    forced: bool = False,
    place: differences.ShownIndex = list,
    has_classes: bool = False,
) -> OutputParity:
    """Compare an output element by element.

    Args:
        vectors: Label of the vector set.
        floor: How far rounding noise moves this output; None if it is not known.
        forced: The reference gates were fed to every layer.
        place: From an index into these arrays to what is shown of it.
        has_classes: Its last axis is of classes: the rows that agree on the first are counted.
    """
    what = f"output '{name}' of vectors {vectors}"
    mismatch = differences.structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    # Of the finite part without masks: infinity, or -1e9, would allow any error.
    error, known = beside_masks(differences.abs_error(got, reference), reference)
    measured, size = spread(error), spread(known)
    limit = tolerance.spread_limit(size, floor, reference.shape)
    reason = differences.beyond(what, (got, reference), error, (measured, limit), place, "differs")
    return OutputParity(
        name=name,
        vectors=vectors,
        max_abs_error=measured.largest,
        max_rel_error=measured.largest / size.largest if size.largest else measured.largest,
        tolerance=limit.largest,
        reason=reason,
        floor=None if floor is None else floor.largest,
        forced=forced,
        elements=error.size,
        rms_error=measured.rms,
        rms_tolerance=limit.rms if math.isfinite(limit.rms) else None,
        top_1=top_1_agreement(got, reference) if has_classes else None,
    )


def unjudged_output(
    name: str, vectors: str, got: Array | None, reference: Array, *, has_classes: bool = False
) -> OutputParity:
    """Measure an output behind an explained flip, where no bound is known: it must be finite.

    Arguments are those of `compare_output`.
    """
    what = f"output '{name}' of vectors {vectors}"
    mismatch = differences.structural_mismatch(what, got, reference)
    if got is None or mismatch is not None:
        return incomparable_output(name, vectors, mismatch)
    # Not only the package can be at fault: `_not_finite` tells NaN of the reference apart.
    errors, reference_max = (
        differences.abs_error(got, reference),
        differences.largest_finite(reference),
    )
    error = differences.largest(errors)
    return OutputParity(
        name=name,
        vectors=vectors,
        max_abs_error=error,
        max_rel_error=error / reference_max if reference_max else error,
        tolerance=None,
        elements=reference.size,
        reason=None if math.isfinite(error) else _not_finite(what, reference, errors),
        top_1=top_1_agreement(got, reference) if has_classes else None,
    )


def _not_finite(what: str, reference: Array, error: differences.Float64Array) -> str:
    if math.isnan(float(reference[differences.worst_index(error)])):
        return f"{what} cannot be compared: the reference is itself NaN."
    return f"{what} is not finite where the reference is."


def incomparable_output(name: str, vectors: str, reason: str | None) -> OutputParity:
    """Return the entry of an output that has no errors to measure."""
    return OutputParity(name, vectors, math.nan, math.nan, 0.0, reason)
