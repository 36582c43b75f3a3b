from __future__ import annotations

import pytest

from moh_deploy.perf.bench.latency import Latency, Timing, runs_timer


def timing(count: int) -> Timing:
    """Return runs of 1, 2, 3 ... ms, shuffled, each with twice as much CPU time, read in a window
    four times as long."""
    wall = tuple(float(1 + 37 * i % count) for i in range(count))
    return Timing(wall, tuple(2 * ms for ms in wall), tuple(4 * ms for ms in wall))


def test_percentiles_are_times_that_so_many_runs_did_not_exceed():
    latency = Latency.of(timing(101))
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (51.0, 91.0, 100.0)
    assert (latency.runs, latency.mean_ms, latency.cpu_ms) == (101, 51.0, 102.0)


def test_utilisation_is_of_the_time_in_which_cpu_time_was_counted():
    assert Latency.of(timing(101)).utilisation == 0.5


@pytest.mark.parametrize(
    ("runs", "p90", "p99"), [(9, None, None), (10, 9.0, None), (99, 90.0, None)]
)
def test_percentiles_of_too_few_runs_are_left_out(runs: int, p90: float | None, p99: float | None):
    latency = Latency.of(timing(runs))
    assert (latency.p90_ms, latency.p99_ms) == (p90, p99)


def test_timer_gives_wall_and_cpu_time_of_each_run():
    times = runs_timer(0.0, 0.0, threads=1)(
        {"busy": lambda: sum(range(20_000)), "idle": lambda: None}
    )
    assert set(times) == {"busy", "idle"}
    for one in times.values():
        assert len(one.wall_ms) == len(one.cpu_ms) == 7
        assert all(around > wall for around, wall in zip(one.around_ms, one.wall_ms, strict=True))
    assert min(times["busy"].cpu_ms) > 0


def test_runs_are_kept_in_order_and_of_many_a_bounded_number():
    assert Latency.of(timing(5)).sorted_ms == (1.0, 2.0, 3.0, 4.0, 5.0)
    kept = Latency.of(timing(10_000)).sorted_ms
    assert (len(kept), kept[0], kept[100], kept[-1]) == (201, 1.0, 5001.0, 10_000.0)
    assert list(kept) == sorted(kept)
