"""Differences of two arrays, where NaN equals nothing and infinity equals itself."""

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package import Spread
from moh_deploy.system.npz import Array

Float64Array = NDArray[np.float64]

ShownIndex: TypeAlias = Callable[[tuple[int, ...]], list[int]]
"""From an index into what is compared to one into the whole array."""


def abs_error(got: Array, reference: Array) -> Float64Array:
    """Return |got - reference| by element: NaN where either is, 0 where both are one infinity."""
    got_64, reference_64 = got.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.asarray(np.abs(got_64 - reference_64))  # numpy makes scalars of 0-d arrays
    # In the arrays' own dtype: float64 cannot tell neighbouring large integers apart.
    error[np.asarray(got == reference)] = 0.0
    # Integers that differ may still be one number in float64, and must not count as equal.
    error[np.asarray(got != reference) & (error == 0.0)] = 1.0
    return cast(Float64Array, error)


def largest(error: Float64Array) -> float:
    """Return the largest element; NaN if there is one; 0 for no elements."""
    return float(error.max()) if error.size else 0.0


def worst(errors: Iterable[float]) -> float:
    """Return the largest of some errors; NaN if there is one; 0 for none."""
    errors = list(errors)
    # Whether max() returns a NaN depends on where it stands, so it is looked for.
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


def worst_index(error: Float64Array) -> tuple[int, ...]:
    """Return where the first NaN stands, or else the first of the largest elements."""
    # argmax takes the first NaN if there is one.
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))


def finite(values: Array) -> Float64Array:
    """Return the values with 0 in place of those that are not finite."""
    wide = values.astype(np.float64)
    return np.where(np.isfinite(wide), wide, 0.0)


def largest_finite(reference: Array) -> float:
    """Return the largest absolute finite value, or 0."""
    return largest(np.abs(finite(reference)))


def structural_mismatch(what: str, got: Array | None, reference: Array) -> str | None:
    """Return a sentence on why the two cannot be compared element by element; None if they can."""
    # Numpy would broadcast shapes and promote dtypes without a word.
    if got is None:
        return f"{what}: the runtime returned nothing."
    if got.shape != reference.shape:
        return f"{what} is of shape {list(got.shape)}, the reference {list(reference.shape)}."
    if got.dtype != reference.dtype:
        return f"{what} is of dtype {got.dtype}, the reference {reference.dtype}."
    return None


def beyond(
    what: str,
    values: tuple[Array, Array],
    error: Float64Array,
    spreads: tuple[Spread, Spread],
    place: ShownIndex,
    verb: str,
) -> str | None:
    """Return a sentence on why an error is beyond its limit; None if it is not.

    Args:
        values: Got, and the reference.
        spreads: The error's, and its limit.
    """
    measured, limit = spreads
    if not measured.largest <= limit.largest:  # not `>`: a NaN must fail
        return describe_worst(what, *values, error, limit.largest, place)
    # The largest error finds a single wrong element, the mean square a small shift of all of them.
    if measured.rms > limit.rms:
        off = f"{measured.rms:.3g} by root mean square"
        return f"{what} {verb} by {off}, tolerance {limit.rms:.3g}."
    return None


def describe_worst(
    what: str,
    got: Array,
    reference: Array,
    error: Float64Array,
    limit: float,
    place: ShownIndex = list,
) -> str:
    """Return a sentence that shows where two arrays differ most, and by how much.

    Args:
        place: From an index into these arrays to what is shown of it.
    """
    at = worst_index(error)
    # NaN in the reference is a matter of the inputs or the original, not of the package.
    if np.isnan(float(reference[at])):
        return (
            f"{what} cannot be compared: the reference is itself NaN at {place(at)}, got"
            f" {_number_text(got[at])}. Expected inputs for which the model computes numbers."
        )
    return (
        f"{what} differs by {error[at]:.3g} at {place(at)}:"
        f" got {_number_text(got[at])}, reference {_number_text(reference[at])},"
        f" tolerance {limit:.3g}."
    )


def _number_text(value: np.generic) -> str:
    return str(value) if value.dtype.kind in "biu" else f"{float(value):.6g}"
