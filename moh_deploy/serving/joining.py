"""Tell whether requests may be joined: by trying whether a sample's answer depends on the others.

That the first axis is dynamic everywhere does not say that it counts samples that are independent.
A model that norms over it, say, would answer a request with what came of another one's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import VectorSet
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.served_model import ServedModel
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import rule_name, tolerance_for


@dataclass(frozen=True)
class Joining:
    """Says whether requests may be joined into batches, and if not why.

    Attributes:
        axis: What they are joined on; None where each runs alone.
        reason: Why each runs alone; None if they are joined.
    """

    axis: BatchAxis | None
    reason: str | None = None


def find_joining(served: ServedModel) -> Joining:
    """Return how requests of a model may be joined.

    A recorded run of several samples is repeated with all of them replaced by one: if that one is
    answered as before, the others had no part in it.

    Raises:
        BackendError: The model does not run.
    """
    axis = served.batch_axis
    if axis is None:
        return Joining(None, "its inputs and outputs have no first axis in common that is dynamic")
    recorded = _several_samples(_recorded(served))
    if recorded is None:
        return Joining(
            None, "no recorded run has several samples, to try whether they are independent"
        )
    whole = served.run(recorded.inputs)
    samples = axis.size(recorded.inputs)
    allowed = tolerance_for(rule_name(served.model.manifest.precision)).relative
    for index in (0, samples - 1):
        same = {
            name: np.repeat(one[index : index + 1], samples, axis=0)
            for name, one in recorded.inputs.items()
        }
        for name, got in served.run(same).items():
            before = whole[name]
            if len(before) != samples or not _is_close(
                got[index : index + 1], before[index : index + 1], allowed
            ):
                return Joining(None, f"output '{name}' of a sample depends on the other samples")
    return Joining(axis)


def _recorded(served: ServedModel) -> Sequence[VectorSet]:
    try:
        return served.model.made_from(None).vectors
    except MoHDeployError:  # an engine, which has none
        return ()


def _several_samples(recorded: Sequence[VectorSet]) -> VectorSet | None:
    """Return a run of samples that are not all the same."""
    for one in recorded:
        if any((values != values[:1]).any() for values in one.inputs.values() if len(values) > 1):
            return one
    return None


def _is_close(got: Array, expected: Array, relative: float) -> bool:
    if expected.dtype.kind in "biu":
        return np.array_equal(got, expected)
    wide_got, wide = got.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(wide[np.isfinite(wide)])
    limit = relative * max(1.0, float(finite.max(initial=0)))
    return bool(np.allclose(wide_got, wide, rtol=0, atol=limit, equal_nan=True))
