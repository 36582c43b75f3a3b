"""The energy that processors and GPUs say they took, as a clock that counts joules."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"

Joules = Callable[[], float]


@dataclass(frozen=True)
class EnergyClock:
    """Counters of a machine, and what they count.

    Attributes:
        joules: Reads them; None where the machine has none.
        counted: What is in it: `processors and their memory`, `GPUs`.
        missing: Why other things are not.
    """

    joules: Joules | None
    counted: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def why_none(self) -> str | None:
        """Why there is no figure; None if there is one."""
        why = "; ".join(self.missing)
        return None if self.joules else f"not measured, this machine counts none: {why}"

    @property
    def note(self) -> str | None:
        """What a reader of figures has to know; None where there are none."""
        if self.joules is None:
            return None
        missing = f" Not in it is what nothing counts: {'; '.join(self.missing)}."
        return (
            f"Energy is that of {' and '.join(self.counted)} of the whole machine, whatever else"
            f" ran on it.{missing if self.missing else ''}"
        )


def energy_clock(root: Path = POWERCAP, nvml: Any = None) -> EnergyClock:
    """Find what counts joules on this machine.

    Counted are all processors and their memory, by RAPL as Linux shows it, and all GPUs, by
    NVIDIA's management library; a machine that has counters of one kind is counted by these.

    Args:
        nvml: The loaded library; None loads that of the driver.
    """
    found = {"processors and their memory": _processors(root), "GPUs": _gpus(nvml)}
    clocks = {what: clock for what, (clock, _) in found.items() if clock is not None}
    missing = tuple(reason for _, reason in found.values() if reason is not None)

    def joules() -> float:
        return sum(clock() for clock in clocks.values())

    return EnergyClock(joules if clocks else None, tuple(clocks), missing)


def _processors(root: Path) -> tuple[Joules | None, str | None]:
    zones = list(_zones(root))
    if not zones:
        return None, f"{root} has no counter of energy"
    try:
        spans = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        return _OverTheirEnds([zone / "energy_uj" for zone in zones], spans), None
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
        self._last = [int(counter.read_text()) for counter in counters]
        self._total = 0

    def __call__(self) -> float:
        now = [int(counter.read_text()) for counter in self._counters]
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
    return lambda: sum(energy or 0 for energy in _millijoules(nvml, handles)) / 1e3, None


def _millijoules(nvml: Any, handles: Sequence[ctypes.c_void_p]) -> list[int | None]:
    """Return what each GPU took since its driver was loaded; None for one that does not tell."""
    spent = [ctypes.c_ulonglong() for _ in handles]
    read = nvml.nvmlDeviceGetTotalEnergyConsumption
    codes = [read(handle, ctypes.byref(into)) for handle, into in zip(handles, spent, strict=True)]
    return [None if code else into.value for code, into in zip(codes, spent, strict=True)]
