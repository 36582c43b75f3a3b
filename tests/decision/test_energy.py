from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.decision.energy import Joules, energy_clock


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


def zone(root: Path, path: str, name: str, microjoules: int, *, span: int = 999_999) -> Path:
    """Write what Linux shows of one counter, and return the counter."""
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def counted(root: Path) -> Joules:
    clock = energy_clock(root, Gpus())
    assert (clock.why_none, clock.counted) == (None, ("processors and their memory",))
    assert clock.joules is not None
    return clock.joules


def test_energy_is_counted_over_the_end_of_a_counter_and_for_all_processors(tmp_path: Path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    # Each processor's counter has an end of its own.
    second = zone(tmp_path, "intel-rapl:1", "package-1", 900_000, span=1_999_999)
    clock = counted(tmp_path)
    first.write_text("100000\n")  # over its end
    second.write_text("950000\n")
    assert clock() == pytest.approx(0.25)
    assert clock() == pytest.approx(0.25)
    first.write_text("0\n")  # and again: what was counted stays
    second.write_text("50000\n")
    assert clock() == pytest.approx(0.25 + 0.9 + 1.1)


def test_memory_is_counted_and_nothing_twice(tmp_path: Path):
    counters = [
        zone(tmp_path, path, name, 0)
        for path, name in (
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),  # parts of the processor's
            ("intel-rapl:0:1", "uncore"),
            ("intel-rapl:0:2", "dram"),
            ("intel-rapl:1", "psys"),  # all of it once more
            ("intel-rapl-mmio:0", "package-0"),  # the same counter, read in another way
        )
    ]
    clock = counted(tmp_path)
    for power, counter in enumerate(counters):
        counter.write_text(str(10**power))
    assert clock() == pytest.approx((1 + 1000) / 1e6)


def test_energy_that_nothing_counts_says_why(tmp_path: Path):
    clock = energy_clock(tmp_path, Gpus())
    assert (clock.joules, clock.note) == (None, None)
    assert clock.why_none == (
        f"not measured, this machine counts none: {tmp_path} has no counter of energy;"
        " libnvidia-ml.so.1 finds no GPU"
    )
    (tmp_path / "intel-rapl:0").mkdir()
    why = str(energy_clock(tmp_path, Gpus()).why_none)
    assert "cannot be read: No such file or directory; " in why
    zone(tmp_path, "intel-rapl:1", "package-1", 0).write_text("many")
    (tmp_path / "intel-rapl:0").rmdir()
    assert "intel-rapl:1 cannot be read: it holds no number" in str(
        energy_clock(tmp_path, Gpus()).why_none
    )


def test_counters_that_only_root_may_read_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def denied(path: Path, *arguments: Any) -> str:
        # As Linux does since 2020; tests may run as root, who may read everything.
        if path == counter:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", denied)
    assert f"{counter} may be read by root alone" in str(energy_clock(tmp_path, Gpus()).why_none)
    # GPUs are counted all the same, and a reader is told what is not in their figure.
    gpus = energy_clock(tmp_path, Gpus(5_000))
    assert gpus.counted == ("GPUs",)
    assert str(gpus.note).endswith(f"what nothing counts: {counter} may be read by root alone.")


def test_gpus_are_counted_beside_processors(tmp_path: Path):
    gpus = Gpus(5_000, 7_000)
    alone = energy_clock(tmp_path, gpus).joules
    assert alone is not None
    before = alone()
    gpus.millijoules = [6_500, 7_250]
    assert alone() - before == pytest.approx(1.75)
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 100_000)
    both = energy_clock(tmp_path, gpus)
    assert both.joules is not None
    assert both.missing == ()
    before = both.joules()
    counter.write_text("350000\n")
    gpus.millijoules[0] = 7_000
    assert both.joules() - before == pytest.approx(0.75)


def test_a_gpu_that_does_not_count_is_said(tmp_path: Path):
    assert "before Volta" in str(energy_clock(tmp_path, Gpus(1, None)).why_none)
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    assert "before Volta" in str(energy_clock(tmp_path, Gpus(1, None)).note)
