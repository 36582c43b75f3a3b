import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from moh_deploy.perf import timing
from moh_deploy.perf.timing import Stopwatch, Turns, difference, ratio, settle, weighted_sum


class Hands:
    """A clock that goes only when somebody works."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.worked: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.seconds += seconds
            self.worked.append(seconds)

        return call


def test_candidates_take_turns_in_an_order_that_is_drawn_each_round():
    hands = Hands()
    stopwatch = Stopwatch(hands, "CPU", 0.0)
    works = {"dense": hands.work(0.02), "sparse": hands.work(0.01), "projected": hands.work(0.03)}
    times = stopwatch("a layer", works)
    assert times["dense"] == pytest.approx([20.0] * 7)
    assert times["sparse"] == pytest.approx([10.0] * 7)
    turns = hands.worked[-21:]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 21, 3)]
    assert {tuple(sorted(item)) for item in rounds} == {(0.01, 0.02, 0.03)}
    assert len(set(rounds)) > 3


def test_nobody_runs_after_the_same_one_each_time():
    ran: list[str] = []
    names = ("one", "two", "three", "four")
    turns = Turns((Hands(),), 0.0, least_sample_seconds=0.0, warmup_seconds=0.0)
    turns({name: lambda name=name: ran.append(name) for name in names})
    in_turns = ran[4 * len(names) :]  # the first four runs of each find out how long one takes
    before = {name: set() for name in names}
    for last, name in pairwise(in_turns):
        before[name].add(last)
    assert min(map(len, before.values())) >= 2


def test_caches_are_filled_again_before_a_turn():
    hands = Hands()
    turns = Turns((hands,), 0.0, least_sample_seconds=0.0, refill_seconds=0.002)
    ran = {"short": 0.0005, "middle": 0.003, "long": 0.2}
    turns({name: hands.work(seconds) for name, seconds in ran.items()})
    counts = {name: hands.worked.count(seconds) for name, seconds in ran.items()}
    assert counts == {"short": 4 + 7 * 5, "middle": 4 + 7 * 2, "long": 4 + 7}
    alone = Hands()
    replace(turns, clocks=(alone,))({"short": alone.work(0.0005)})
    assert len(alone.worked) == 4 + 7


def test_short_work_is_repeated_within_a_sample():
    hands = Hands()
    times = Stopwatch(hands, "CPU", 0.0)("a layer", {"dense": hands.work(1e-5)})
    assert times["dense"] == pytest.approx([0.01] * 7)
    assert len(hands.worked) >= 7 * 100


def test_comparison_goes_on_until_its_time_is_up_but_not_for_ever():
    start = time.perf_counter()
    times = Stopwatch(time.perf_counter, "wall", 0.05)(
        "a layer", {"dense": lambda: time.sleep(1e-3)}
    )
    assert time.perf_counter() - start >= 0.05
    assert len(times["dense"]) > 7
    hands = Hands()
    times = Stopwatch(hands, "CPU", 3600.0)("a layer", {"dense": hands.work(0.01)})
    assert len(times["dense"]) == 501


def test_several_clocks_are_read_around_the_same_calls_the_first_one_closest():
    wall, cpu, read = Hands(), Hands(), []

    def work() -> None:
        wall.seconds += 0.02
        cpu.seconds += 0.03

    def reading(name: str, hands: Hands) -> Callable[[], float]:
        def clock() -> float:
            read.append(name)
            return hands.seconds

        return clock

    turns = Turns((reading("wall", wall), reading("cpu", cpu)), 0.0, least_sample_seconds=0.0)
    (wall_ms, cpu_ms) = turns({"one": work})["one"]
    assert wall_ms == pytest.approx([20.0] * 7)
    assert cpu_ms == pytest.approx([30.0] * 7)
    assert read[-4:] == ["cpu", "wall", "wall", "cpu"]


def test_every_run_is_a_sample_where_none_is_too_short():
    hands = Hands()
    times = Turns((hands,), 0.0, least_sample_seconds=0.0)({"one": hands.work(1e-5)})
    assert times["one"][0] == pytest.approx([0.01] * 7)
    assert len(hands.worked) == 4 + 7


@pytest.mark.parametrize(("candidates", "pauses"), [(["one"], 0), (["one", "other"], 14)])
def test_turns_settle_where_another_candidate_was_before(
    monkeypatch: pytest.MonkeyPatch, candidates: list[str], pauses: int
):
    slept: list[float] = []
    monkeypatch.setattr(timing, "settle", slept.append)
    hands = Hands()
    turns = Turns((hands,), 0.0, settle_seconds=0.005)
    turns(dict.fromkeys(candidates, hands.work(0.01)))
    assert slept == [0.005] * pauses


def test_candidates_warm_up_for_so_long():
    start, ran = time.perf_counter(), []
    turns = Turns((Hands(),), 0.0, warmup_seconds=0.05, least_sample_seconds=0.0)
    times = turns({"one": lambda: (ran.append(1), time.sleep(1e-3))})
    assert time.perf_counter() - start >= 0.05
    assert len(times["one"][0]) == 7
    assert len(ran) > 4 + 7


def test_one_thread_is_timed_by_what_it_does_and_several_by_the_wall():
    assert Stopwatch.for_threads(1, 1.0).clock is time.process_time
    assert Stopwatch.for_threads(2, 1.0).clock is time.perf_counter
    assert Stopwatch.for_threads(None, 1.0).name == "wall"
    # One thread waits while a GPU works.
    assert Stopwatch.for_threads(1, 1.0, on_gpu=True).name == "wall"


@pytest.mark.parametrize(("threads", "pauses"), [(1, 0), (2, 14), (None, 14)])
def test_stopwatch_lets_the_threads_of_the_last_candidate_sleep(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, pauses: int
):
    slept: list[float] = []
    monkeypatch.setattr(timing, "settle", slept.append)
    hands = Hands()
    stopwatch = replace(Stopwatch.for_threads(threads, 0.0), clock=hands)
    stopwatch("a layer", {"dense": hands.work(0.02), "sparse": hands.work(0.01)})
    assert slept == [0.005] * pauses


def test_clear_difference_is_one_and_noise_is_none():
    rng = np.random.default_rng(0)
    noise = 1 + 0.1 * rng.standard_normal((2, 51))
    assert ratio(8 * noise[0], 10 * noise[1]).is_faster
    assert ratio(10 * noise[0], 8 * noise[1]).is_slower
    same = ratio(10 * noise[0], 10 * noise[1])
    assert not same.is_faster
    assert not same.is_slower
    assert same.low < same.value < same.high


def test_difference_is_that_of_rounds():
    found = difference([3.0, 30.0, 3.5, 4.0, 3.0, 5.0, 3.0], [1.0, 28.0, 1.5, 2.0, 1.0, 3.0, 1.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_disturbance_of_both_in_a_round_does_not_count():
    disturbed = [1.0, 1.0, 9.0, 1.0, 1.0, 30.0, 1.0]
    compared = ratio([0.9 * ms for ms in disturbed], disturbed)
    assert compared.is_faster
    assert compared.value == pytest.approx(0.9)


def test_one_outlier_decides_nothing():
    assert not ratio([1.0] * 6 + [0.01], [1.0] * 7).is_faster


@pytest.mark.parametrize("count", [7, 8, 11, 16, 20, 24, 101])
def test_median_is_outside_its_interval_no_more_often_than_said(count: int):
    rng = np.random.default_rng(count)
    wrong = 0
    for _ in range(2000):
        compared = ratio(list(np.exp(0.1 * rng.standard_normal(count))), [1.0] * count)
        wrong += compared.is_faster or compared.is_slower
    assert wrong / 2000 < 0.06


def test_inputs_count_as_often_as_they_weigh():
    assert weighted_sum([(1.0, 2.0, 3.0), (10.0, 20.0)], [1.0, 0.5]) == (6.0, 12.0)


class Spinners:
    """Threads that spin for some seconds on a share of a core."""

    def __init__(self, seconds: float, share: float = 1.0) -> None:
        self.wall, self.cpu, self.pauses = 0.0, 0.0, 0
        self.left, self.share = seconds, share

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.wall += seconds
        spun = min(self.left, self.share * seconds)
        self.left, self.cpu = self.left - spun, self.cpu + spun

    def settle(self) -> int:
        settle(0.005, sleep=self.sleep, wall=lambda: self.wall, cpu=lambda: self.cpu)
        return self.pauses


@pytest.mark.parametrize(
    ("seconds", "share", "pauses"),
    [
        (0.0, 1.0, 1),  # nobody spins
        (0.004, 1.0, 2),
        (0.004, 0.5, 3),  # the machine is busy, so it takes longer
        (0.2, 1.0, 41),
        (9.0, 1.0, 60),  # nobody waits longer than 300 ms
        (9.0, 0.05, 1),  # it is something else that goes on
    ],
)
def test_nothing_runs_when_a_turn_begins(seconds: float, share: float, pauses: int):
    assert Spinners(seconds, share).settle() == pytest.approx(pauses, abs=1 if pauses > 9 else 0)
