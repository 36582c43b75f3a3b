"""The contract: what a correct output is. Every implementation is judged by this one function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case


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
    specified = _specified(case, references)
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


def _specified(case: Case, references: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    specified = OPS[case.op].specified
    if specified is None:
        return [np.ones(reference.shape, dtype=bool) for reference in references]
    return specified(case.inputs(), case.attributes)


def _find_difference(got: np.ndarray, reference: np.ndarray, case: Case) -> str | None:
    """Return the first kind of difference, worded as the rest of a sentence about the output."""
    finite = np.isfinite(reference)
    special = ~finite & ~_same_special(got, reference)
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


def _same_special(got: np.ndarray, reference: np.ndarray) -> np.ndarray:
    same: np.ndarray = (got == reference) | (np.isnan(got) & np.isnan(reference))
    return same


def _element(what: str, got: np.ndarray, reference: np.ndarray, where: np.ndarray) -> str:
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return (
        f"{what} at {index} ({int(where.sum())} elements): {got[index]:.9g}; "
        f"expected {reference[index]:.9g}."
    )
