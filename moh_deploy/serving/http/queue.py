"""Join requests that wait into batches, and answer them on threads, one for each instance.

A batch is made of requests of equal other sizes, oldest first. It runs as soon as an instance is
free and it is full, or its oldest request has waited for the longest delay. With no delay, requests
are joined that arrived while every instance was busy.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain

from moh_deploy.errors import MoHDeployError
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.metrics import Family, Series, single
from moh_deploy.serving.process_health import RunsUnderWay
from moh_deploy.serving.served_model import Answering, Reply, Tensors, answer_batch

# Limits of an HTTP server: sizes of requests, and how long clients may take.

# The answer to a request that gets no tensors: an HTTP status and a sentence.


class Refusal(MoHDeployError):
    """A request is not answered with tensors.

    Args:
        message: What was wrong: what, got, expected.
        status: Of HTTP; 400 says that the request itself is at fault.
        retry_after_s: When it may be sent again; None where that would change nothing.
        closes_connection: More of the request may come, and is not read.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        retry_after_s: int | None = None,
        closes_connection: bool = False,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s
        self.closes_connection = closes_connection

    def __str__(self) -> str:
        """Return the message with the next step behind it, in one line."""
        return self.message if self.hint is None else f"{self.message} {self.hint}"


MIB = 2**20


@dataclass(frozen=True)
class HttpLimits:
    """Limits that keep a server alive whatever clients send."""

    max_body_bytes: int = 64 * MIB  # the most bytes of a request's body; 413 beyond
    # The most bytes of its JSON, which takes thirty times as much in memory while it is read; 413
    # beyond.
    max_json_bytes: int = 4 * MIB
    # The most bytes of all bodies that are received, answered or sent; half of them from one
    # address; 503 beyond.
    max_held_bytes: int = 512 * MIB
    max_waiting: int = 256  # the most requests that wait for an instance; 503 beyond
    # How long a request's headers, and then its body, may take to arrive: 408 beyond; and how long
    # a client may read nothing, or next to nothing, of its answer before it is cut off.
    read_timeout_s: float = 20.0
    # How long a request that has arrived may wait for its answer; 504 beyond.
    request_timeout_s: float = 60.0
    # How long requests that have arrived are still answered when the server is told to stop.
    shutdown_timeout_s: float = 30.0
    # Dynamic dimension to its largest size in a request; 400 beyond. A long sequence is a small
    # body, but much work.
    longest: dict[str, int] = field(default_factory=dict)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuse sizes of dynamic dimensions that are too large.

        Raises:
            Refusal: Naming the dimension and its limit.
        """
        for name, most in self.longest.items():
            if sizes.get(name, 0) > most:
                raise Refusal(f"dimension '{name}' is {sizes[name]}, expected at most {most}.")


_HELP = {
    "waiting": "Requests that wait for an instance.",
    "limit": "The most requests that may wait: more are refused.",
    "seconds": "How long requests have waited before they ran, all together.",
    "samples": "Samples in the batches that were run.",
}


@dataclass(frozen=True)
class _Waiting:
    """A request that waits, since when, and its answer to come."""

    inputs: Tensors
    samples: int
    arrived: float
    future: Future[Reply]


class BatchingQueue:
    """Answers requests in batches. Threads may submit at the same time.

    Args:
        answer: Answers one batch; is called from several threads.
        axis: How requests are joined; None where each runs alone.
        max_batch: The most samples that are joined; a request of more runs alone.
        max_delay_s: How long the oldest request of a batch waits for others.
        max_waiting: The most requests that wait; one more is refused.

    Attributes:
        runs: Those that are under way.
    """

    def __init__(
        self,
        answer: Answering,
        axis: BatchAxis | None,
        *,
        instances: int,
        max_batch: int,
        max_delay_s: float,
        max_waiting: int,
        hung_s: float = 60.0,
    ) -> None:
        self._answer = answer
        self._axis = axis
        self._max_batch, self._max_waiting, self._max_delay_s = max_batch, max_waiting, max_delay_s
        self.runs = RunsUnderWay(instances, hung_s)
        self._most = max_batch if axis is None or axis.most is None else min(max_batch, axis.most)
        # All that follows is read and written with this held.
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, deque[_Waiting]] = {}
        self._num_waiting = 0
        self._is_hurried = False
        self._is_closed = False
        self._batches: Counter[int] = Counter()  # samples to the number of batches of so many
        self._waited_s = 0.0
        self._threads = [
            threading.Thread(
                target=self._work, args=(index,), name=f"instance {index}", daemon=True
            )
            for index in range(instances)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: Tensors) -> Future[Reply]:
        """Take a request, to answer it later.

        Returns:
            The answer to come. Cancelling it takes the request out and gives back its arrays,
            unless it runs already.

        Raises:
            Refusal: So many requests wait that this one cannot, or the queue is closed.
        """
        samples = 1 if self._axis is None else self._axis.size(inputs)
        request = _Waiting(inputs, samples, time.monotonic(), Future())
        # Without an axis no two requests have the same key: each is a batch of its own.
        key: Hashable = request.future if self._axis is None else self._axis.key(inputs)
        request.future.add_done_callback(self._let_go)
        with self._changed:
            if self._is_closed:
                raise _shutting_down()
            if self._num_waiting >= self._max_waiting:
                raise Refusal(
                    f"{self._num_waiting} requests wait already, which is the limit.",
                    status=503,
                    retry_after_s=1,
                )
            self._waiting.setdefault(key, deque()).append(request)
            self._num_waiting += 1
            self._changed.notify()
        return request.future

    def hurry(self) -> None:
        """Let no request wait for others any more: no more will come."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def refuse_waiting(self) -> None:
        """Refuse what waits and what comes: no instance is left that could answer it."""
        with self._changed:
            self._is_closed = True
            waiting = list(chain.from_iterable(self._waiting.values()))
            self._waiting.clear()
            self._num_waiting = 0
        for request in waiting:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(_shutting_down())

    def close(self, *, timeout_s: float | None = None) -> bool:
        """Answer what waits, and stop. New requests are refused from now on.

        Args:
            timeout_s: How long that may take; None waits for as long as it takes.

        Returns:
            Whether all is answered.
        """
        with self._changed:
            self._is_hurried = self._is_closed = True
            self._changed.notify_all()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def families(self) -> tuple[Family, ...]:
        """Return what was counted so far."""
        with self._changed:
            waiting, batches = self._num_waiting, dict(self._batches)
            waited_s = self._waited_s
        edges = [2.0**power for power in range(max(0, self._max_batch - 1).bit_length() + 1)]
        buckets = {
            edge: sum(count for samples, count in batches.items() if samples <= edge)
            for edge in (*edges, math.inf)
        }
        total = sum(samples * count for samples, count in batches.items())
        histogram = Series({}, total, buckets)
        return (
            single("moh_queue_waiting_requests", "gauge", waiting, _HELP["waiting"]),
            single("moh_queue_limit_requests", "gauge", self._max_waiting, _HELP["limit"]),
            single("moh_queue_seconds_total", "counter", waited_s, _HELP["seconds"]),
            Family("moh_batch_samples", _HELP["samples"], "histogram", (histogram,)),
            *self.runs.families(),
        )

    def _work(self, instance: int) -> None:
        def answer(inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
            self.runs.begins(instance)
            return self._answer(inputs, sizes)

        while (batch := self._next_batch()) is not None:
            replies = answer_batch(answer, self._axis, [request.inputs for request in batch])
            for request, reply in zip(batch, replies, strict=True):
                if isinstance(reply, Exception):
                    request.future.set_exception(reply)
                else:
                    request.future.set_result(reply)
            self.runs.ends(instance)

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for the next batch and take it; None if the queue is closed and empty."""
        with self._changed:
            while True:
                now, soonest = time.monotonic(), math.inf
                due: list[Hashable] = []
                for key, requests in self._waiting.items():
                    when = self._due(requests)
                    soonest = min(soonest, when)
                    if when <= now:
                        due.append(key)
                if due:
                    # The one whose oldest request is the oldest: none waits for ever.
                    batch = self._take(min(due, key=lambda key: self._waiting[key][0].arrived))
                    if batch:
                        return batch
                    continue
                if self._is_closed:
                    return None
                self._changed.wait(soonest - now if self._waiting else None)

    def _due(self, requests: deque[_Waiting]) -> float:
        """Return when a batch of these requests is to run."""
        oldest = requests[0].arrived
        if self._axis is None or self._is_hurried or not self._max_delay_s:
            return oldest
        samples = 0
        for request in requests:  # not all: the queue may be long
            samples += request.samples
            if samples >= self._most:
                return oldest
        return oldest + self._max_delay_s

    def _take(self, key: Hashable) -> list[_Waiting]:
        """Take a batch out of the requests of a key, without those that were cancelled."""
        requests, batch, samples = self._waiting[key], list[_Waiting](), 0
        while requests and (not batch or samples + requests[0].samples <= self._most):
            request = requests.popleft()
            self._num_waiting -= 1
            if request.future.set_running_or_notify_cancel():
                batch.append(request)
                samples += request.samples
                self._waited_s += time.monotonic() - request.arrived
        if not requests:
            del self._waiting[key]
        if self._waiting:
            self._changed.notify()  # another instance may be free for the rest
        if batch:
            self._batches[samples] += 1
        return batch

    # Called with the future alone: one that knew its request would keep the arrays itself.
    def _let_go(self, future: Future[Reply]) -> None:
        """Take a request out whose future was cancelled."""
        if not future.cancelled():
            return
        with self._changed:
            for key, requests in list(self._waiting.items()):
                kept = deque(item for item in requests if item.future is not future)
                self._num_waiting -= len(requests) - len(kept)
                if kept:
                    self._waiting[key] = kept
                else:
                    del self._waiting[key]


def _shutting_down() -> Refusal:
    return Refusal("the server is shutting down.", status=503, retry_after_s=1)
