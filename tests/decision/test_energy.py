from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.decision.energy import energy_clock


class Gpus:
    """Stands in for NVIDIA's management library: what it writes into what it is given.

    Attributes:
        millijoules: What each GPU says; None for one that does not count.
    """

    def __init__(self, *millijoules: int | None) -> None:
        self.millijoules = list(millijoules)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.millijoules)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, into: Any) -> int:
        assert handle.value is not None
        spent = self.millijoules[handle.value - 1]
        into._obj.value = spent or 0
        return 3 if spent is None else 0  # NVML_ERROR_NOT_SUPPORTED


def test_energy_is_counted_over_the_end_of_a_counter_and_for_all_processors(tmp_path: Path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("999999\n")
        (tmp_path / name / "energy_uj").write_text("900000\n")
    clock, reason = energy_clock(tmp_path, Gpus())
    assert (reason, clock is None) == (None, False)
    assert clock is not None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")  # over its end
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950000\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("990000\n")  # part of 0
    assert clock() == pytest.approx(0.25)
    assert clock() == pytest.approx(0.25)


def test_energy_that_nothing_counts_says_why(tmp_path: Path):
    assert energy_clock(tmp_path, Gpus()) == (
        None,
        f"{tmp_path} has no counter of energy; libnvidia-ml.so.1 finds no GPU",
    )
    (tmp_path / "intel-rapl:0").mkdir()
    clock, reason = energy_clock(tmp_path, Gpus())
    assert clock is None
    assert reason is not None
    assert "cannot be read: No such file or directory; " in reason


def test_gpus_are_counted_beside_processors(tmp_path: Path):
    gpus = Gpus(5_000, 7_000)
    clock, reason = energy_clock(tmp_path, gpus)
    assert (reason, clock is None) == (None, False)
    assert clock is not None
    before = clock()
    gpus.millijoules = [6_500, 7_250]
    assert clock() - before == pytest.approx(1.75)
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("999999\n")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    both, _ = energy_clock(tmp_path, gpus)
    assert both is not None
    before = both()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("350000\n")
    gpus.millijoules[0] = 7_000
    assert both() - before == pytest.approx(0.75)


def test_a_gpu_that_does_not_count_is_said(tmp_path: Path):
    clock, reason = energy_clock(tmp_path, Gpus(1, None))
    assert clock is None
    assert "before Volta" in str(reason)
