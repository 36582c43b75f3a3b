"""The energy that processors and GPUs say they took, as a clock that counts joules."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"

Joules = Callable[[], float]


def energy_clock(root: Path = POWERCAP, nvml: Any = None) -> tuple[Joules | None, str | None]:
    """Return what reads joules of the whole machine, and why there is nothing that does.

    Counted are all processors and their memory, by RAPL as Linux shows it, and all GPUs, by
    NVIDIA's management library; a machine that has counters of one kind is counted by these.

    Args:
        nvml: The loaded library; None loads that of the driver.
    """
    clocks, reasons = [], []
    for clock, reason in (_processors(root), _gpus(nvml)):
        if clock is not None:
            clocks.append(clock)
        if reason is not None:
            reasons.append(reason)
    if not clocks:
        return None, f"this machine counts none: {'; '.join(reasons)}"
    return lambda: sum(clock() for clock in clocks), None


def _processors(root: Path) -> tuple[Joules | None, str | None]:
    zones = list(_zones(root))
    if not zones:
        return None, f"{root} has no counter of energy"
    try:
        spans = [int((one / "max_energy_range_uj").read_text()) for one in zones]
        return _OverTheirEnds([one / "energy_uj" for one in zones], spans), None
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            return None, f"{error.filename} may be read by root alone"
        reason = error.strerror if isinstance(error, OSError) else "it holds no number"
        return None, f"the counters below {zones[0]} cannot be read: {reason}"


def _zones(root: Path) -> Iterator[Path]:
    """Yield the zones that together are all that is counted, and nothing twice."""
    for zone in sorted(root.glob("intel-rapl:*")):
        name, is_part = _name(zone), zone.name.count(":") > 1
        # Cores and graphics are counted in their processor already, memory is not. The platform
        # (psys) has all of it in itself, and few machines have that.
        if (name == "dram") if is_part else (name != "psys"):
            yield zone


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


class _OverTheirEnds:
    """Adds up counters of microjoules that begin again at 0 when they are full."""

    def __init__(self, counters: list[Path], spans: list[int]) -> None:
        self._counters, self._spans = counters, spans
        self._last = [int(one.read_text()) for one in counters]
        self._total = 0

    def __call__(self) -> float:
        now = [int(one.read_text()) for one in self._counters]
        steps = zip(now, self._last, self._spans, strict=True)
        self._total += sum((new - old) % (span + 1) for new, old, span in steps)
        self._last = now
        return self._total / 1e6


def _gpus(nvml: Any) -> tuple[Joules | None, str | None]:
    if nvml is None:
        try:
            nvml = ctypes.CDLL(NVML)
        except OSError:
            return None, f"there is no {NVML}"
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None, f"{NVML} finds no driver that answers"
    handles = [ctypes.c_void_p() for _ in range(count.value)]
    for index, handle in enumerate(handles):
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            return None, f"{NVML} does not open GPU {index}"
    if not handles:
        return None, f"{NVML} finds no GPU"
    if None in _millijoules(nvml, handles):
        return None, "a GPU does not count its energy, as those before Volta"
    return lambda: sum(one or 0 for one in _millijoules(nvml, handles)) / 1e3, None


def _millijoules(nvml: Any, handles: Sequence[ctypes.c_void_p]) -> list[int | None]:
    """Return what each GPU took since its driver was loaded; None for one that does not tell."""
    spent = [ctypes.c_ulonglong() for _ in handles]
    read = nvml.nvmlDeviceGetTotalEnergyConsumption
    codes = [read(one, ctypes.byref(into)) for one, into in zip(handles, spent, strict=True)]
    return [None if code else into.value for code, into in zip(codes, spent, strict=True)]
