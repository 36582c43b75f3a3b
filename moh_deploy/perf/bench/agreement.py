"""Compare the outputs of candidates: a ratio of two different computations says little."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moh_deploy.system.npz import Array
from moh_deploy.validate.output_parity import compare_output
from moh_deploy.validate.tolerances import Tolerance, output_rule, tolerance_for


@dataclass(frozen=True)
class Agreement:
    """The distance of one candidate's outputs from those of the first package.

    Attributes:
        max_abs_error: The largest difference; NaN where outputs cannot be compared.
        tolerance: The most that `verify` would let it be, of the output that is the furthest off.
        reason: What differs by more; None if nothing does.
    """

    max_abs_error: float
    tolerance: float | None
    reason: str | None


def agreement(
    got: Sequence[Array],
    reference: Mapping[str, Array],
    precisions: Collection[str],
    *,
    inputs: str,
) -> Agreement:
    """Compare outputs by their order.

    Args:
        got: Outputs of the candidate.
        reference: Those of the first package, by name.
        precisions: What the two compute in, by names of the table of tolerances.
        inputs: What both ran on, in words.
    """
    # By order, not by name: a baseline of somebody else calls its outputs something else.
    if len(got) != len(reference):
        reason = f"it has {len(got)} outputs, not {len(reference)}."
        return Agreement(math.nan, None, reason)
    # A float32 baseline is compared in the half precision of the package: rounding its outputs is
    # no fault of either. What is too large for that becomes infinite, and differs.
    with np.errstate(over="ignore"):
        found = [
            compare_output(
                name, inputs, array.astype(expected.dtype), expected, _rule(expected, precisions)
            )
            for (name, expected), array in zip(reference.items(), got, strict=True)
        ]
    worst = next((output for output in found if output.reason is not None), None)
    worst = worst or max(found, key=lambda item: item.max_abs_error, default=None)
    if worst is None:
        return Agreement(0.0, None, None)
    return Agreement(worst.max_abs_error, worst.tolerance, worst.reason)


def _rule(expected: Array, precisions: Collection[str]) -> Tolerance:
    dtype = expected.dtype.name
    # The coarsest rule holds: an output can be no more precise than what either side computes in.
    return output_rule(dtype, tolerance_for(dtype), *map(tolerance_for, precisions))
