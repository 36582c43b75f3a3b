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
    """Yield the reply to each request, or what it raised, in their order.

    One request, of a token that there is none of, say, must not fail those that it was joined with:
    where the batch fails, each of several is run again alone, and yielded as soon as it is known.

    Args:
        answer: Answers one batch.
        axis: What requests are joined on; None where each runs alone.
        requests: Name to array; they were checked, and have equal keys of the axis.
    """
    try:
        replies = _replies(answer, axis, requests)
    except Exception as error:
        if len(requests) == 1:
            yield error
            return
        for one in requests:
            yield from answer_batch(answer, axis, [one])
        return
    yield from replies


def _replies(
    answer: Answering, axis: BatchAxis | None, requests: Sequence[Tensors]
) -> Sequence[Reply]:
    if axis is None:
        return [answer(one) for one in requests]
    sizes = [axis.size(one) for one in requests]
    reply = answer(axis.joined(requests), sizes)
    return [Reply(part, reply.rung) for part in axis.split(reply.outputs, sizes)]
