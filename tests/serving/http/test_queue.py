import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.http.queue import BatchingQueue, Refusal, Tensors
from moh_deploy.serving.metrics import Family
from moh_deploy.serving.served_model import Reply

AXIS = BatchAxis("batch")
LONG_S = 60.0
Make = Callable[..., BatchingQueue]


class Model:
    """Doubles its input, notes the batches, and stops in each while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
        self.batches.append(tuple(sizes))
        self.begun.release()
        assert self.gate.wait(LONG_S)
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return Reply({"y": inputs["x"] * 2}, "kernels")


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def make(model: Model) -> Iterator[Make]:
    made = []

    def queue(axis: BatchAxis | None = AXIS, **limits: Any) -> BatchingQueue:
        usual = {"instances": 1, "max_batch": 8, "max_delay_s": 0.0, "max_waiting": 100}
        made.append(BatchingQueue(model, axis, **usual | {"hung_s": LONG_S} | limits))
        return made[-1]

    yield queue
    model.gate.set()
    for item in made:
        assert item.close(timeout_s=LONG_S)


def ask(queue: BatchingQueue, *values: float, width: int = 1) -> Future[Reply]:
    return queue.submit({"x": np.array([[value] * width for value in values])})


def busy(queue: BatchingQueue, model: Model) -> Future[Reply]:
    """Let an instance begin with a request for 1, and go on when the gate is opened."""
    model.gate.clear()
    begun = ask(queue, 1)
    model.begun.acquire()
    return begun


def families(queue: BatchingQueue) -> dict[str, Family]:
    return {family.name: family for family in queue.families()}


def got(future: Future[Reply]) -> list[float]:
    values: list[float] = future.result(LONG_S).outputs["y"][:, 0].tolist()
    return values


def test_requests_that_came_while_the_instance_was_busy_are_one_batch(make: Make, model: Model):
    queue = make()
    first = busy(queue, model)
    others = [ask(queue, 2), ask(queue, 3, 4), ask(queue, 5)]
    model.gate.set()
    assert [got(item) for item in (first, *others)] == [[2], [4], [6, 8], [10]]
    assert model.batches == [(1,), (1, 2, 1)]


def test_batch_is_not_larger_than_allowed_and_requests_are_not_cut(make: Make, model: Model):
    queue = make(max_batch=4)
    first = busy(queue, model)
    others = [ask(queue, *range(size)) for size in (3, 2, 2, 9, 1)]
    model.gate.set()
    wait([first, *others], LONG_S)
    assert model.batches == [(1,), (3,), (2, 2), (9,), (1,)]


def test_limit_of_the_model_counts_too(make: Make, model: Model):
    queue = make(BatchAxis("batch", 2), max_delay_s=LONG_S)
    wait([ask(queue, 1), ask(queue, 2)], LONG_S)
    assert model.batches == [(1, 1)]


def test_full_batch_does_not_wait(make: Make, model: Model):
    queue = make(max_batch=2, max_delay_s=LONG_S)
    assert [got(item) for item in [ask(queue, 1), ask(queue, 2)]] == [[2], [4]]


def test_first_request_waits_for_others_as_long_as_the_delay(make: Make, model: Model):
    queue = make(max_delay_s=0.05)
    start = time.monotonic()
    assert got(ask(queue, 1)) == [2]
    assert time.monotonic() - start >= 0.05


def test_requests_of_other_sizes_are_not_joined_and_the_oldest_is_first(make: Make, model: Model):
    queue = make()
    first = busy(queue, model)
    others = [ask(queue, 1, width=2), ask(queue, 1, 1, width=3), ask(queue, 3, width=2)]
    model.gate.set()
    wait([first, *others], LONG_S)
    assert model.batches == [(1,), (1, 1), (2,)]


def test_requests_without_a_batch_axis_run_alone(make: Make, model: Model):
    queue = make(None)
    model.gate.clear()
    asked = [ask(queue, value) for value in range(3)]
    model.gate.set()
    assert [got(item) for item in asked] == [[0], [2], [4]]
    assert model.batches == [(), (), ()]


def test_full_queue_refuses_and_answers_what_it_has(make: Make, model: Model):
    queue = make(max_waiting=2)
    asked = [busy(queue, model)]
    asked += [ask(queue, 1), ask(queue, 2)]
    with pytest.raises(Refusal, match="2 requests wait already") as caught:
        ask(queue, 3)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    model.gate.set()
    assert [got(item) for item in asked] == [[2], [2], [4]]


def test_cancelled_request_is_not_run_and_leaves_its_place(make: Make, model: Model):
    queue = make(max_waiting=1)
    first = busy(queue, model)
    assert ask(queue, 1).cancel()
    other = ask(queue, 2)
    model.gate.set()
    assert [got(first), got(other)] == [[2], [4]]
    assert model.batches == [(1,), (1,)]


def test_cancelled_request_is_let_go_at_once(make: Make, model: Model):
    queue = make()
    first = busy(queue, model)
    inputs = {"x": np.ones((1, 1))}
    array = weakref.ref(inputs["x"])
    gone, other = queue.submit(inputs), ask(queue, 2)
    del inputs
    assert gone.cancel()
    assert array() is None
    assert families(queue)["moh_queue_waiting_requests"].samples[0].value == 1
    model.gate.set()
    assert [got(first), got(other)] == [[2], [4]]


def test_request_that_fails_does_not_fail_those_that_it_was_joined_with(make: Make, model: Model):
    queue = make(max_batch=3, max_delay_s=LONG_S)
    asked = [ask(queue, 1), ask(queue, -1), ask(queue, 3)]
    assert [got(asked[0]), got(asked[2])] == [[2], [6]]
    with pytest.raises(ValueError, match="negative"):
        asked[1].result(LONG_S)


def test_instances_run_at_the_same_time(make: Make, model: Model):
    queue = make(instances=2)
    first = busy(queue, model)
    second = ask(queue, 2)
    assert model.begun.acquire(timeout=LONG_S)
    model.gate.set()
    assert [got(first), got(second)] == [[2], [4]]


def test_close_answers_what_waits_and_refuses_what_comes(make: Make, model: Model):
    queue = make(max_delay_s=LONG_S)
    asked = [ask(queue, 1), ask(queue, 2, width=2)]
    assert queue.close(timeout_s=LONG_S)
    assert [got(item) for item in asked] == [[2], [4]]
    with pytest.raises(Refusal, match="shutting down") as caught:
        ask(queue, 3)
    assert caught.value.status == 503


def test_hurried_requests_do_not_wait_for_others(make: Make, model: Model):
    queue = make(max_delay_s=LONG_S)
    asked = ask(queue, 1)
    queue.hurry()
    assert [got(asked), got(ask(queue, 2))] == [[2], [4]]


def test_close_says_that_a_run_did_not_end(make: Make, model: Model):
    queue = make()
    busy(queue, model)
    assert not queue.close(timeout_s=0.01)


def test_run_that_hangs_is_counted_and_others_go_on(make: Make, model: Model):
    queue = make(instances=2, hung_s=0.01)
    hanging = busy(queue, model)
    while not queue.runs.hung():
        time.sleep(0.001)
    assert not queue.runs.are_all_hung
    assert families(queue)["moh_hung_runs"].samples[0].value == 1
    model.gate.set()
    assert got(hanging) == [2]
    while queue.runs.hung():
        time.sleep(0.001)


def test_what_waits_behind_hung_runs_is_refused(make: Make, model: Model):
    queue = make()
    hanging = busy(queue, model)
    waiting, gone = ask(queue, 2), ask(queue, 3)
    gone.cancel()
    queue.refuse_waiting()
    with pytest.raises(Refusal, match="shutting down") as refused:
        waiting.result(LONG_S)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
    with pytest.raises(Refusal, match="shutting down"):
        ask(queue, 4)
    model.gate.set()
    assert got(hanging) == [2]


def test_many_clients_get_their_own_answers(make: Make, model: Model):
    queue = make(instances=3, max_batch=16, max_delay_s=0.0005)

    def client(number: int) -> None:
        for step in range(100):
            values = [number * 1000.0 + step] * (1 + step % 3)
            width = 1 + (number + step) % 2
            assert got(ask(queue, *values, width=width)) == [2 * value for value in values]

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    # Each sample is counted, once.
    (batches,) = families(queue)["moh_batch_samples"].samples
    assert batches.value == sum(map(sum, model.batches)) == 8 * (34 + 33 * 2 + 33 * 3)
    assert batches.buckets[np.inf] == len(model.batches)


def test_waiting_requests_and_batches_are_counted(make: Make, model: Model):
    queue = make(max_batch=6)
    asked = [busy(queue, model)]
    asked += [ask(queue, 1, 2), ask(queue, 3)]
    assert families(queue)["moh_queue_waiting_requests"].samples[0].value == 2
    assert families(queue)["moh_queue_limit_requests"].samples[0].value == 100
    model.gate.set()
    wait(asked, LONG_S)
    assert families(queue)["moh_queue_seconds_total"].samples[0].value > 0
    batches = families(queue)["moh_batch_samples"]
    assert batches.samples[0].value == 4
    assert batches.samples[0].buckets == {1: 1, 2: 1, 4: 2, 8: 2, np.inf: 2}
