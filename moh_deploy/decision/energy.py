"""The energy that the processor says it took, as a clock that counts joules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def energy_clock(root: Path = POWERCAP) -> tuple[Callable[[], float] | None, str | None]:
    """Return what reads joules of all processors, and why there is none.

    The counters are RAPL's, as Linux shows them; they count the whole machine, and begin again at 0
    when they are full.
    """
    # `intel-rapl:0` is a processor; `intel-rapl:0:1` a part of it, which is counted in it already.
    zones = sorted(one for one in root.glob("intel-rapl:*") if one.name.count(":") == 1)
    counters = [one / "energy_uj" for one in zones]
    if not counters:
        return None, f"{root} has no counter of energy"
    try:
        spans = [int((one / "max_energy_range_uj").read_text()) for one in zones]
        for one in counters:
            int(one.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no number"
        return None, f"{counters[0]} cannot be read: {reason}"
    return _Joules(counters, spans), None


class _Joules:
    """Adds up counters, over their ends."""

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
