"""Answer the requests of a batch: joined, and each alone where that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.served_model import Reply
from moh_deploy.system.npz import Array

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
