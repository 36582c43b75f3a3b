"""Answer joined requests, and tell by trying whether requests may be joined.

A first axis that is dynamic everywhere may count samples that depend on each other. A model that
norms over it would answer a request with numbers that come of the values in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import VectorSet
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.served_model import Reply, ServedModel
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import rule_name, tolerance_for

# Answer the requests of a batch: joined, and each alone where that fails.

Tensors: TypeAlias = Mapping[str, Array]


class Answering(Protocol):
    """Answers a batch, as `ServedModel.answer` does."""

    def __call__(self, inputs: Tensors, sizes: Sequence[int] = ()) -> Reply: ...


def answer_batch(
    answer: Answering, axis: BatchAxis | None, requests: Sequence[Tensors]
) -> Iterator[Reply | Exception]:
    """Yield the reply to each request, or its error, in their order.

    A request of an unknown token must not fail those that it was joined with: where the batch
    fails, each of several is run again alone, and yielded as soon as it is known.

    Args:
        answer: Answers one batch.
        axis: The axis that requests are joined on; None where each runs alone.
        requests: Name to array; they were checked, and have equal keys of the axis.
    """
    try:
        if axis is None:
            replies = [answer(inputs) for inputs in requests]
        else:
            sizes = [axis.size(inputs) for inputs in requests]
            reply = answer(axis.joined(requests), sizes)
            replies = [Reply(part, reply.rung) for part in axis.split(reply.outputs, sizes)]
    except Exception as error:
        if len(requests) == 1:
            yield error
            return
        for inputs in requests:
            yield from answer_batch(answer, axis, [inputs])
        return
    yield from replies


@dataclass(frozen=True)
class Joining:
    """Says whether requests may be joined into batches, and if not why.

    Attributes:
        axis: The axis that they are joined on; None where each runs alone.
        reason: Why each runs alone; None if they are joined.
    """

    axis: BatchAxis | None
    reason: str | None = None


def find_joining(served: ServedModel) -> Joining:
    """Return how requests of a model may be joined.

    A recorded run of several samples is repeated with all of them replaced by the first, and by
    the last: where that is answered as before, the others have no part in its answer.

    Raises:
        BackendError: The model does not run.
    """
    axis = served.batch_axis
    if axis is None:
        return Joining(None, "its inputs and outputs have no first axis in common that is dynamic")
    try:
        vectors = served.model.made_from(None).vectors
    except MoHDeployError:  # an engine has none
        vectors = ()
    recorded = next(filter(_has_unequal_samples, vectors), None)
    if recorded is None:
        return Joining(
            None, "no recorded run has several samples, to try whether they are independent"
        )
    whole = served.run(recorded.inputs)
    samples = axis.size(recorded.inputs)
    allowed = tolerance_for(rule_name(served.model.manifest.precision)).relative
    for index in (0, samples - 1):
        same = {
            name: np.repeat(array[index : index + 1], samples, axis=0)
            for name, array in recorded.inputs.items()
        }
        for name, got in served.run(same).items():
            before = whole[name]
            if len(before) != samples or not _is_close(
                got[index : index + 1], before[index : index + 1], allowed
            ):
                return Joining(None, f"output '{name}' of a sample depends on the other samples")
    return Joining(axis)


def _has_unequal_samples(recorded: VectorSet) -> bool:
    arrays = recorded.inputs.values()
    return any((array != array[:1]).any() for array in arrays if len(array) > 1)


def _is_close(got: Array, expected: Array, relative: float) -> bool:
    if expected.dtype.kind in "biu":
        return np.array_equal(got, expected)
    wide_got, wide = got.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(wide[np.isfinite(wide)])
    limit = relative * max(1.0, float(finite.max(initial=0)))
    return bool(np.allclose(wide_got, wide, rtol=0, atol=limit, equal_nan=True))
