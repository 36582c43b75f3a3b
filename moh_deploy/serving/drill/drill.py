"""Plant each fault in a server under load, wait until it tripped and came back, and count."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drill.load import Asked, Load
from moh_deploy.serving.drill.report import NOTHING, FaultDrill
from moh_deploy.serving.drill.targets import Target
from moh_deploy.serving.guard.faults import Fault
from moh_deploy.serving.guard.guard_io import Control, write_control

KILL = "kill"
_LOOK_S = 0.02
_MOST_FAILURES = 3


@dataclass(frozen=True)
class Drill:
    """Breaks a server, one fault after the other."""

    target: Target
    load: Load
    seconds: float  # how long the load runs before the first fault, and how long each fault stays
    trip_s: float  # a fault stays up to so long until the guard has noticed it
    return_s: float  # how long the first level may take to come back
    first_level: str

    def run(self, faults: Sequence[Fault | str]) -> tuple[FaultDrill, tuple[FaultDrill, ...]]:
        """Plant faults in their order, and return what clients saw before and during each."""
        log = _Log(self.target.audit_log)
        time.sleep(self.seconds)
        before = _counted(NOTHING, self.load.take())
        return before, tuple(
            self._killed() if fault == KILL else self._planted(fault, log)  # type: ignore[arg-type]
            for fault in faults
        )

    def _planted(self, fault: Fault, log: _Log) -> FaultDrill:
        # The fault before may have left another level in service.
        first = self.first_level
        _wait(lambda: log.is_calm(first), self.return_s)
        self.load.take()
        log.start_anew()
        begun = time.time()
        write_control(self.target.control, Control(faults=(fault,)))
        try:
            _wait(lambda: log.trip is not None, self.trip_s)
            # A fault that trips at once stays for a while, or probes would miss it.
            time.sleep(max(0.0, begun + self.seconds - time.time()))
        finally:
            write_control(self.target.control, Control())
        ended = time.time()
        is_back = _wait(lambda: log.is_calm(first), self.return_s)
        # A little longer: the first level is to be seen at work again.
        time.sleep(min(1.0, self.seconds))
        trip, changes = log.trip, log.changes
        returns = [each.time for each in changes if each.mode_from != first == each.mode_to]
        back = returns[-1].timestamp() - ended if is_back and returns else None
        return replace(
            _counted(fault, self.load.take()),
            seconds_to_trip=None if trip is None else max(0.0, trip.time.timestamp() - begun),
            seconds_to_return=None if back is None else max(0.0, back),
            reason=None if trip is None else trip.reason,
            moved=any(change.mode_to != first for change in changes),
        )

    def _killed(self) -> FaultDrill:
        self.load.take()
        begun = time.time()
        if not self.target.kill_worker():
            raise ConfigError(
                f"{self.target.name} has no worker that could be killed: leave out '{KILL}'."
            )
        asked: list[Asked] = []

        def answered_again() -> list[Asked]:
            """Return the right answers to requests that began after the last failure."""
            asked.extend(self.load.take())
            failures = [each.ended for each in asked if each.outcome == "failed"]
            since = max(failures, default=begun)
            return [each for each in asked if each.outcome == "right" and each.begun > since]

        def is_back() -> bool:
            # Late answers say nothing of the next worker: every client is to get some.
            is_over = time.time() > begun + self.seconds
            return len(answered_again()) >= 2 * self.load.clients and is_over

        seconds = None
        if _wait(is_back, self.return_s):
            seconds = max(0.0, min(each.ended for each in answered_again()) - begun)
        return replace(
            _counted(KILL, asked),
            seconds_to_trip=0.0,
            seconds_to_return=seconds,
            reason="the worker was killed",
            moved=True,
        )


def _counted(fault: str, asked: Sequence[Asked]) -> FaultDrill:
    failures = [each.error for each in asked if each.outcome == "failed"]
    answered = [each for each in asked if each.outcome != "failed"]
    return FaultDrill(
        fault,
        requests=len(asked),
        wrong=sum(each.outcome == "wrong" for each in asked),
        failed=len(failures),
        failures=tuple(dict.fromkeys(failures))[:_MOST_FAILURES],
        served=dict(Counter(each.rung or "not said" for each in answered)),
    )


class _Change(BaseModel):
    """A line of an audit log, as far as a drill needs it."""

    time: datetime
    mode_from: str = Field(alias="from")
    mode_to: str = Field(alias="to")
    reason: str
    state: str


class _Log:
    """Reads the lines that are appended to an audit log.

    Attributes:
        changes: The lines since the drill of a fault began.
    """

    def __init__(self, path: Path) -> None:
        self.changes: list[_Change] = []
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._mode: str | None = None
        self._is_drifting = False

    @property
    def trip(self) -> _Change | None:
        """The first change for the worse, so far."""
        self._read()
        return next((change for change in self.changes if change.state in ("open", "on")), None)

    def is_calm(self, first_level: str) -> bool:
        """Tell whether the first level serves, as far as is known, and no drift alarm holds."""
        self._read()
        return self._mode in (None, first_level) and not self._is_drifting

    def start_anew(self) -> None:
        """Forget the changes so far."""
        self._read()
        self.changes.clear()

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        # A line that is being written is read the next time.
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                change = _Change.model_validate_json(line)
            except ValidationError:
                raise ConfigError(
                    f"the audit log has a line that no guard wrote: {line[:60]!r}.",
                    hint="Name the log of the server that is drilled: --audit-log.",
                ) from None
            self.changes.append(change)
            self._mode = change.mode_to
            if change.reason in ("drift", "drift is over"):
                self._is_drifting = change.reason == "drift"


def _wait(is_so: Callable[[], bool], most_s: float) -> bool:
    """Wait for a condition, and tell whether it held in time."""
    end = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S)
    return True
