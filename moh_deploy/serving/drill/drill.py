"""Plant each fault in a server under load, wait until it tripped and came back, and count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drill.load import Asked, Load, served_by
from moh_deploy.serving.drill.report import NOTHING, FaultDrill
from moh_deploy.serving.drill.targets import Target
from moh_deploy.serving.guard.control import Control, write_control
from moh_deploy.serving.guard.faults import Fault
from moh_deploy.system.bounded_json import parse_json

KILL = "kill"
_LOOK_S = 0.02
_MOST_FAILURES = 3


@dataclass(frozen=True)
class DrillPlan:
    """The faults to plant, and how long each stays.

    Attributes:
        faults: In this order; `kill` ends the worker.
        seconds: How long the load runs before the first fault, and how long each one stays.
        trip_s: A fault stays up to so long until the guard has noticed it.
        return_s: How long the first rung may take to come back.
        first_rung: Its name.
    """

    faults: tuple[Fault | str, ...]
    seconds: float
    trip_s: float
    return_s: float
    first_rung: str


def run_drill(
    target: Target, load: Load, plan: DrillPlan
) -> tuple[FaultDrill, tuple[FaultDrill, ...]]:
    """Break a server, one fault after the other.

    Args:
        target: The server.
        load: Its clients, at work.
        plan: What to do.

    Returns:
        What clients saw before, and during each fault.
    """
    log = _Log(target.audit_log)
    time.sleep(plan.seconds)
    before = _drilled(NOTHING, load.take(), None)
    found = []
    for fault in plan.faults:
        if fault == KILL:
            found.append(_killed(target, load, plan))
        else:
            found.append(_planted(target, load, plan, log, fault))  # type: ignore[arg-type]
    return before, tuple(found)


def _planted(target: Target, load: Load, plan: DrillPlan, log: _Log, fault: Fault) -> FaultDrill:
    # What came before may have left another rung in service.
    _wait(lambda: log.is_calm(plan.first_rung), plan.return_s)
    load.take()
    log.start_anew()
    begun = time.time()
    write_control(target.control, Control(faults=(fault,)))
    try:
        _wait(lambda: log.trip is not None, plan.trip_s)
        # What trips at once stays for a while: probes must not take it for gone.
        time.sleep(max(0.0, begun + plan.seconds - time.time()))
    finally:
        write_control(target.control, Control())
    ended = time.time()
    is_back = _wait(lambda: log.is_calm(plan.first_rung), plan.return_s)
    # A little longer: the first rung is to be seen at work again.
    time.sleep(min(1.0, plan.seconds))
    trip, moved = log.trip, any(one.mode_to != plan.first_rung for one in log.changes)
    returned = next((one.time for one in reversed(log.changes) if _comes_back(one, plan)), None)
    timed = _Timed(
        None if trip is None else max(0.0, trip.time - begun),
        None if not (moved and is_back) or returned is None else max(0.0, returned - ended),
        None if trip is None else trip.reason,
        moved,
    )
    return _drilled(fault, load.take(), timed)


def _killed(target: Target, load: Load, plan: DrillPlan) -> FaultDrill:
    load.take()
    begun = time.time()
    if not target.kill_worker():
        raise ConfigError(f"{target.name} has no worker that could be killed: leave out '{KILL}'.")
    asked: list[Asked] = []

    def up() -> list[Asked]:
        """Return the right answers to what was asked after the last failure."""
        asked.extend(load.take())
        failures = [one.ended for one in asked if one.outcome == "failed"]
        since = max(failures, default=begun)
        return [one for one in asked if one.outcome == "right" and one.begun > since]

    # Answers that were on their way say nothing of the next worker: every client is to get some.
    is_back = _wait(
        lambda: len(up()) >= 2 * load.clients and time.time() > begun + plan.seconds, plan.return_s
    )
    first = min((one.ended for one in up()), default=begun)
    seconds = max(0.0, first - begun) if is_back else None
    return _drilled(KILL, asked, _Timed(0.0, seconds, "the worker was killed", moved=True))


@dataclass(frozen=True)
class _Timed:
    seconds_to_trip: float | None
    seconds_to_return: float | None
    reason: str | None
    moved: bool


def _drilled(fault: str, asked: Sequence[Asked], timed: _Timed | None) -> FaultDrill:
    failures = [one.error for one in asked if one.outcome == "failed"]
    timed = timed or _Timed(None, None, None, moved=False)
    return FaultDrill(
        fault=fault,
        requests=len(asked),
        wrong=sum(one.outcome == "wrong" for one in asked),
        failed=len(failures),
        failures=tuple(dict.fromkeys(failures))[:_MOST_FAILURES],
        seconds_to_trip=timed.seconds_to_trip,
        seconds_to_return=timed.seconds_to_return,
        reason=timed.reason,
        moved=timed.moved,
        served=served_by(asked),
    )


@dataclass(frozen=True)
class _Change:
    """A line of an audit log, as far as a drill needs it."""

    time: float
    mode_from: str
    mode_to: str
    reason: str
    rung: str
    state: str


def _comes_back(one: _Change, plan: DrillPlan) -> bool:
    return one.mode_to == plan.first_rung and one.mode_from != plan.first_rung


class _Log:
    """Reads what is appended to an audit log.

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
        return next((one for one in self.changes if one.state in ("open", "on")), None)

    def is_calm(self, first_rung: str) -> bool:
        """Tell whether the first rung serves, as far as is known, and no drift alarm holds."""
        self._read()
        return self._mode in (None, first_rung) and not self._is_drifting

    def start_anew(self) -> None:
        """Forget the changes so far."""
        self._read()
        self.changes = []

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
            change = _change(line)
            self.changes.append(change)
            self._mode = change.mode_to
            if change.reason in ("drift", "drift is over"):
                self._is_drifting = change.reason == "drift"


def _change(line: bytes) -> _Change:
    entry = parse_json(line, "the audit log", error=ConfigError)
    if not isinstance(entry, dict):
        raise ConfigError(f"the audit log has a line that is no object: {json.dumps(entry):.60}.")
    try:
        when = datetime.fromisoformat(str(entry["time"]).replace("Z", "+00:00")).timestamp()
        said = [str(entry[key]) for key in ("from", "to", "reason", "rung", "state")]
    except (KeyError, ValueError):
        raise ConfigError(
            f"the audit log has a line that no guard wrote: {json.dumps(entry):.60}.",
            hint="Name the log of the server that is drilled: --audit-log.",
        ) from None
    return _Change(when, *said)


def _wait(is_so: Callable[[], bool], most_s: float) -> bool:
    """Wait until something is so, and tell whether it was in time."""
    end = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S)
    return True
