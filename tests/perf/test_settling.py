from __future__ import annotations

import pytest

from moh_deploy.perf.timing import settle


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
