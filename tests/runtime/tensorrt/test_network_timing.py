"""Times of calls that take turns, by a planted clock. Engines: tests/api/test_build_tensorrt.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from moh_deploy.runtime.tensorrt import network_timing
from moh_deploy.runtime.tensorrt.messages import Fill, TimingRequest
from moh_deploy.runtime.tensorrt.network_timing import time_in_turns


class Planted:
    """A clock that a call lets go on, and that may be disturbed in some rounds."""

    def __init__(self, **times: float) -> None:
        self.now, self.order = 0.0, []
        self.calls = {name: self._call(name, ms) for name, ms in times.items()}
        self.disturbed: Callable[[int], bool] = lambda reading: False
        self.readings = 0

    def _call(self, name: str, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.order.append(name)
            self.now += ms

        return call

    def clock(self, call: Callable[[], None], count: int) -> float:
        start = self.now
        for _ in range(count):
            call()
        self.readings += 1
        return (self.now - start) * (100 if self.disturbed(self.readings) else 1)


def test_each_call_has_the_time_of_one_run():
    planted = Planted(a=0.5, b=0.002)
    found = time_in_turns(planted.calls, planted.clock)
    assert found == {"a": pytest.approx(0.5), "b": pytest.approx(0.002)}


def test_calls_take_turns():
    planted = Planted(a=10.0, b=10.0)
    time_in_turns(planted.calls, planted.clock)
    after_warm_up = planted.order[2 * network_timing._WARM_UP_RUNS :]
    assert after_warm_up == ["a", "b"] * network_timing._ROUNDS


def test_a_round_that_is_disturbed_does_not_count():
    planted = Planted(a=1.0, b=2.0)
    planted.disturbed = lambda reading: reading % 3 == 0
    found = time_in_turns(planted.calls, planted.clock)
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("fill", "mean", "values"),
    [
        ("gates", 0.25, {0, 1}),
        ("seen", 1, {1}),
        ("zero", 0, {0}),
        ("random", 0, None),
        ("filled", 2**30, {2**30}),  # lengths beyond the last key
    ],
)
def test_what_inputs_hold(fill: Fill, mean: float, values: set[float] | None):
    dtype = SimpleNamespace(name="INT64" if fill == "filled" else "HALF")
    engine = SimpleNamespace(get_tensor_dtype=lambda name: dtype)
    request = TimingRequest({}, {"x": fill}, open_share=0.25)
    found = network_timing._feeds(engine, request, {"x": (4, 100, 100)})["x"]
    assert (found.shape, found.dtype) == ((4, 100, 100), "q" if fill == "filled" else "e")
    assert found.mean(dtype=np.float64) == pytest.approx(mean, abs=0.02)
    assert values is None or set(np.unique(found)) == values
