"""How far rounding alone moves a model in half precision.

Eager half precision cannot be asked: packages are verified without PyTorch. So the model itself is,
with the reference gates fed to it: each low weight moves at random by up to one step of its dtype,
which carries as much noise as six roundings, and the results are compared with those of the weights
as they are. A wrong model differs from the reference, but not from itself: a fault does not raise
its own floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import ROUNDING_STEP
from moh_deploy.validate.differences import abs_error, largest

STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""One step of a dtype, as a share of a number."""

DRAWS = 3


def measure_floor(
    noisy: Runner,
    inputs: Mapping[str, Array],
    dtype: str,
    *,
    gates: frozenset[str],
    select: Callable[[dict[str, Array]], dict[str, Array]] = dict,
) -> dict[str, float]:
    """Return the largest difference that noise makes in each value that the model returns.

    It is infinite where noise makes a number infinite or NaN.

    Args:
        noisy: See `Variants.noisy`.
        inputs: Those of the model, and the gates.
        dtype: Of the weights that move.
        gates: Names of values in which only elements count that are not 0 in either run.
        select: Returns what counts of a run's results.
    """
    exact = select(_run(noisy, inputs, 0.0))
    floor = dict.fromkeys(exact, 0.0)
    for _ in range(DRAWS):
        drawn = select(_run(noisy, inputs, STEPS[dtype]))
        for name, value in drawn.items():
            moved = _difference(value, exact[name], only_chosen=name in gates)
            floor[name] = max(floor[name], moved)
    return floor


def _run(noisy: Runner, inputs: Mapping[str, Array], step: float) -> dict[str, Array]:
    return noisy.run({**inputs, ROUNDING_STEP: np.asarray(step, np.float32)})


def _difference(got: Array, exact: Array, *, only_chosen: bool) -> float:
    error = abs_error(got, exact)
    counts = np.isfinite(exact)
    if only_chosen:
        counts &= (got != 0) & (exact != 0)
    error = np.where(counts, error, 0.0)
    return largest(np.where(np.isnan(error), np.inf, error))
