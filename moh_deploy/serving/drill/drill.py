"""Plant each fault in a server under load, wait until it tripped and came back, and report."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import pydantic

from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.report import document as doc
from moh_deploy.report.report import HIDDEN, Report, count, in_json
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.drill.targets import Asked, Load, Target
from moh_deploy.serving.guard.guard_io import UNSEEN, Control, Fault, write_control

DrillOutcome = Literal["held", "failed", "cannot be seen", "no fault"]

# The name of the load before any fault.
NOTHING = "none, before"


@dataclass(frozen=True)
class FaultDrill:
    """One fault, from when it was planted to when the first level served again.

    The times are None where the guard's log never had it, or the first level did not come back in
    time. Where it never left, there is no time to return either.
    """

    fault: str
    requests: int
    wrong: int  # answers that are not the package's own
    failed: int  # requests that got an error, or no answer
    failures: tuple[str, ...]  # the first errors
    seconds_to_trip: float | None = None
    seconds_to_return: float | None = None
    reason: str | None = None  # in the log
    moved: bool = False  # another level served meanwhile
    served: Mapping[str, int] = field(default_factory=dict)  # fallback level to its requests

    @property
    @in_json()
    def outcome(self) -> DrillOutcome:
        """Tell whether the guard held: no wrong answer was given, and the first level came back.

        Finite, wrong answers look right when they are given: such a fault is not judged.
        """
        if self.fault == NOTHING:
            return "no fault"
        if self.fault in UNSEEN:
            return "cannot be seen"
        returned = not self.moved or self.seconds_to_return is not None
        return "held" if not self.wrong and returned and self.reason is not None else "failed"

    @property
    @in_json()
    def sentence(self) -> str:
        """Return the outcome in words."""
        if self.fault == NOTHING:
            return f"without any fault: {count(self.requests, 'request')}."
        if self.fault in UNSEEN:
            seen = "Nothing found it: `spot_checks` of the policy can."
            if self.seconds_to_trip is not None:
                seen = f"A spot check found it after {self.seconds_to_trip:.2f} s."
            return (
                f"{self.fault}: answers that are finite and wrong look right when they are given;"
                f" {self.wrong} of {count(self.requests, 'answer')} got out. {seen}"
            )
        if self.wrong:
            return f"{self.fault}: {count(self.wrong, 'wrong answer')} got out."
        if self.reason is None:
            return f"{self.fault}: the guard did not notice it; has the policy a limit for it?"
        if self.fault == "kill" and self.seconds_to_return is None:
            return (
                "kill: no worker answered again in time: something else has to restart it. Its"
                f" last errors: {'; '.join(self.failures) or 'none'}"
            )
        if self.moved and self.seconds_to_return is None:
            return f"{self.fault}: the first level did not come back in time."
        return f"{self.fault}: no wrong answer, {count(self.failed, 'failed request')}."


@dataclass(frozen=True)
class DrillReport(Report):
    """The report of a drill: what clients saw while a server was broken on purpose."""

    schema_version: Literal[1] = field(default=1, init=False)  # of its JSON
    subject: str  # the served package
    server: str  # what served it
    policy: str  # the guard's policy: a file, or the drill's own
    clients: int  # how many sent requests at the same time
    seconds: float  # how long each fault stayed
    before: FaultDrill  # the same figures of the load before any fault
    faults: tuple[FaultDrill, ...]  # one entry for each that was planted
    kernels: KernelUse = field(metadata=HIDDEN)  # the kernel library of the package here

    @property
    @in_json()
    def passed(self) -> bool:
        return not self.reasons

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Why the guard did not hold."""
        before, reasons = self.before, []
        if not before.requests:
            reasons.append("no request was answered before any fault: nothing is proven.")
        if before.wrong or before.failed:
            reasons.append(
                f"without any fault {before.wrong} answers were wrong and {before.failed} requests"
                f" failed: {'; '.join(before.failures) or 'they differ from the package'}."
            )
        failed = (drilled.sentence for drilled in self.faults if drilled.outcome == "failed")
        return (*reasons, *failed)

    @property
    def failure(self) -> ValidationError | None:
        """The error that says that the guard did not hold; None if it did."""
        if self.passed:
            return None
        return ValidationError(f"the guard did not hold: {' '.join(self.reasons)}")

    def document(self) -> doc.Document:
        """Return one page of it."""
        every = (self.before, *self.faults)
        judged = [drilled for drilled in self.faults if drilled.outcome != "cannot be seen"]
        requests = sum(drilled.requests for drilled in every)
        wrong = sum(drilled.wrong for drilled in judged)
        sentence = (
            f"{count(len(judged), 'fault')} that can be seen, {count(requests, 'request')} by"
            f" {count(self.clients, 'client')}: {count(wrong, 'wrong answer')} got out."
        )
        verdict = doc.Verdict(
            "HELD" if self.passed else "DID NOT HOLD",
            self.passed,
            sentence,
            (sentence,),
            held=tuple(drilled.sentence for drilled in judged if drilled.outcome == "held"),
            reasons=self.reasons,
        )
        trips = [d.seconds_to_trip for d in judged if d.seconds_to_trip is not None]
        returns = [d.seconds_to_return for d in judged if d.seconds_to_return is not None]
        facts = (
            doc.Fact("wrong answers", f"{wrong}", "that got out, of faults that can be seen"),
            doc.Fact("failed requests", f"{sum(d.failed for d in self.faults)}", f"of {requests}"),
            doc.Fact("to trip", f"{max(trips):.2f} s" if trips else "–", "the longest"),
            doc.Fact("to return", f"{max(returns):.2f} s" if returns else "–", "the longest"),
        )
        cases = [
            doc.CiCase("drill", name, "passed" if is_good else "failure", why)
            for name, is_good, why in (
                ("verdict", self.passed, sentence),
                *((d.fault, d.outcome != "failed", d.sentence) for d in self.faults),
            )
        ]
        rows: list[tuple[doc.Cell, ...]] = [
            (
                d.fault,
                doc.Status(d.outcome, {"held": True, "failed": False}.get(d.outcome)),
                *(d.requests, d.wrong, d.failed, d.seconds_to_trip, d.seconds_to_return, d.reason),
                ", ".join(f"{name} {number}" for name, number in d.served.items()),
            )
            for d in every
        ]
        return doc.Document(
            "drill",
            (doc.Table("what clients saw", _COLUMNS, rows, id="faults"),),
            verdict,
            facts=facts,
            findings=tuple(d.sentence for d in self.faults if d.outcome == "cannot be seen"),
            remarks=(f"Served by {self.server}; policy: {self.policy}.",),
            suites=(doc.CiSuite(tuple(cases)),),
        )


_COLUMNS = (
    *("fault", "outcome", "#requests", "#wrong", "#failed", "#trip s", "#return s"),
    doc.Column("why it tripped", doc.NOT_TERMINAL, width="words"),
    doc.Column("answered by", width="words"),
)


KILL = "kill"
_LOOK_S = 0.02
_MOST_FAILURES = 3


class _Change(pydantic.BaseModel):
    """A line of an audit log, as far as a drill needs it."""

    time: datetime
    mode_from: str = pydantic.Field(alias="from")
    mode_to: str = pydantic.Field(alias="to")
    reason: str
    state: str


class _Log:
    """Reads the lines that are appended to an audit log."""

    def __init__(self, path: Path) -> None:
        self.changes: list[_Change] = []  # since the drill of a fault began
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
            except pydantic.ValidationError:
                raise ConfigError(
                    f"the audit log has a line that no guard wrote: {line[:60]!r}.",
                    hint="Name the log of the server that is drilled: --audit-log.",
                ) from None
            self.changes.append(change)
            self._mode = change.mode_to
            if change.reason in ("drift", "drift is over"):
                self._is_drifting = change.reason == "drift"


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


def _wait(is_so: Callable[[], bool], most_s: float) -> bool:
    """Wait for a condition, and tell whether it held in time."""
    end = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S)
    return True
