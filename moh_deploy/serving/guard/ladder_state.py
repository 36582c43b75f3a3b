"""Decide which rungs of the ladder may answer a request: the state of a guard, without any run.

A rung is blamed for a wrong answer only where a rung below gave a right one to the same request:
what no rung can answer is the request's fault, and nobody can close a server by sending it. So the
last rung that serves is never opened by an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.errors import MoHDeployError, ValidationError
from moh_deploy.serving.guard.breaker import Breaker, BreakerLimits, State

TripReason = Literal[
    "non-finite outputs",
    "non-finite gates",
    "kernel error",
    "cannot be opened",
    "wrong known answer",  # to a recorded run, when it was to come into service
    "process died",  # while the rung was running
    "other answers",  # than those of a rung that is proven to give the same
    "latency",
    "drift",
    "drift is over",
    "cool-down is over",
    "probes passed",
    "manual",
    "control file",  # which cannot be read
]

Evidence = Mapping[str, str | float | int | None]


@dataclass(frozen=True)
class Transition:
    """A change of the ladder's state, as the audit log has it.

    Attributes:
        rung: What changed; empty where the change is of none alone.
        state: What it became: `closed`, `open`, `half-open`; of drift and the manual switch, `on`
            or `off`.
        mode_from: The rung that served before.
        mode_to: The rung that serves now: often the same.
        reason: Why.
        evidence: The figures that it rests on.
    """

    rung: str
    state: State | Literal["on", "off"]
    mode_from: str
    mode_to: str
    reason: TripReason
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class RungFailure:
    """An answer of a rung that was judged wrong, or that did not come."""

    rung: int
    reason: TripReason
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """The way of one request.

    Attributes:
        rungs: Which rungs may answer, the first that does so rightly is taken.
        probe: The rung that is run beside and compared; None for none.
    """

    rungs: tuple[int, ...]
    probe: int | None


NOWHERE = "none"
"""The mode in which no rung serves."""


class LadderState:
    """The breakers of all rungs, the hold of a drift alarm, and the manual switch.

    Args:
        names: The rungs, the fastest first.
        limits: Of each.
        drift_to: The rung that serves while routing has drifted; None: drift is logged only.
    """

    def __init__(
        self, names: Sequence[str], limits: Sequence[BreakerLimits], drift_to: int | None = None
    ) -> None:
        self.names = tuple(names)
        self._breakers = tuple(map(Breaker, limits))
        self._drift_to = drift_to
        self._drift = Breaker(limits[0])
        self._pinned: int | None = None
        self._calm: Route | None = None  # what every request gets as long as nothing changes
        self._changes: list[Transition] = []

    @property
    def mode(self) -> str:
        """The rung that serves; NOWHERE if none does."""
        rungs = self._closed()
        return self.names[rungs[0]] if rungs else NOWHERE

    @property
    def states(self) -> dict[str, State]:
        """Each rung's state."""
        return {name: one.state for name, one in zip(self.names, self._breakers, strict=True)}

    @property
    def pinned(self) -> str | None:
        """The rung that the manual switch holds; None if it is off."""
        return None if self._pinned is None else self.names[self._pinned]

    @property
    def is_drifting(self) -> bool:
        """Whether a drift alarm holds."""
        return self._drift.state == "open"

    @property
    def has_changed(self) -> bool:
        """Whether there is something to take."""
        return bool(self._changes)

    def take(self) -> tuple[Transition, ...]:
        """Return the changes since the last call."""
        found = tuple(self._changes)
        self._changes.clear()
        return found

    def route(self, now: float) -> Route:
        """Return which rungs may answer a request that comes now."""
        # The way of nearly every request: nothing is open, so there is nothing to wait for.
        if self._calm is not None:
            return self._calm
        route = self._route(now)
        if len(route.rungs) == len(self.names) and not self.is_drifting:
            self._calm = route
        return route

    def _route(self, now: float) -> Route:
        for index, breaker in enumerate(self._breakers):
            before = self.mode
            if breaker.tick(now):
                self._note(index, before, "cool-down is over", {})
        before = self.mode
        if self._drift.tick(now):
            self._drift.close(now)
            self._change("", "off", before, "drift is over", {})
        rungs = self._closed()
        first = self._pinned or 0
        half_open = [
            i for i, one in enumerate(self._breakers) if one.state == "half-open" and i >= first
        ]
        # Nothing else serves: half-open rungs do, and each answer is judged as any other.
        if not rungs:
            return Route(tuple(half_open), None)
        return Route(rungs, half_open[0] if half_open else None)

    def answered(self, now: float, rung: int, seconds: float) -> None:
        """Count a right answer.

        Args:
            now: When.
            rung: Which rung gave it.
            seconds: How long that took.
        """
        breaker = self._breakers[rung]
        # Several requests may have been on their way when the first of them opened it.
        if breaker.state == "half-open":
            self._passed(now, rung, seconds)
        elif breaker.state == "closed" and breaker.took(now, seconds) and self._below(rung):
            evidence = {"p99_ms": breaker.p99_ms, "limit_ms": breaker.limits.p99_ms}
            self._open(now, rung, "latency", {**evidence, "runs": breaker.runs})

    def failed(self, now: float, failures: Sequence[RungFailure]) -> None:
        """Count wrong answers to a request that a rung below answered better."""
        for one in failures:
            breaker = self._breakers[one.rung]
            if breaker.state == "half-open" or (breaker.state == "closed" and breaker.failed(now)):
                self._open(now, one.rung, one.reason, one.evidence)

    def probed(self, now: float, rung: int, seconds: float, failure: RungFailure | None) -> None:
        """Count a run beside the rung that serves.

        Args:
            now: When.
            rung: What ran.
            seconds: How long it took.
            failure: What was wrong; None if its answer is that of the rung that serves.
        """
        # Another rung's fault may have changed the state since the probe was asked for.
        if self._breakers[rung].state != "half-open":
            return
        if failure is not None:
            self._open(now, rung, failure.reason, failure.evidence)
        else:
            self._passed(now, rung, seconds)

    def disagreed(self, now: float, failure: RungFailure) -> None:
        """Open a rung whose answer, already given, is not that of a rung proven to be the same."""
        if self._breakers[failure.rung].state == "closed" and self._below(failure.rung):
            self._open(now, failure.rung, failure.reason, failure.evidence)

    def unavailable(self, now: float, rung: int, error: MoHDeployError) -> None:
        """Open a rung that cannot be loaded, or whose known answer is wrong: of the last one, too.

        Args:
            now: When.
            rung: Which rung.
            error: Why it cannot serve.
        """
        is_wrong = isinstance(error, ValidationError)
        reason: TripReason = "wrong known answer" if is_wrong else "cannot be opened"
        if self._breakers[rung].state != "open":
            self._open(now, rung, reason, {"error": error.message})

    def died(self, now: float, rung: str) -> None:
        """Open a rung that was running when the process before this one died, unless it is the
        last."""
        if rung in self.names and self._below(self.names.index(rung)):
            self._open(now, self.names.index(rung), "process died", {})

    def drifted(self, now: float, evidence: Evidence) -> None:
        """Note an alarm: while they come, and a cool-down longer, the rung for drift serves."""
        before = self.mode
        if self._drift.state == "open":
            # No step of the back-off: it is the same drift.
            self._drift.open_until = max(
                self._drift.open_until, now + self._drift.limits.cool_down_s
            )
            return
        cool_down = self._drift.open(now)
        self._change("", "on", before, "drift", {**evidence, "cool_down_s": cool_down})

    def pin(self, rung: str | None, evidence: Evidence) -> None:
        """Let a rung and those below it serve, and none above, or release the switch.

        A rung that is open stays so: the switch is no way to have its answers.
        """
        before = self.mode
        self._pinned = None if rung is None else self.names.index(rung)
        self._change(rung or "", "off" if rung is None else "on", before, "manual", evidence)

    def _closed(self) -> tuple[int, ...]:
        """Return the rungs that may serve, in order."""
        first = 0
        if self._pinned is not None:
            first = self._pinned
        elif self.is_drifting and self._drift_to is not None:
            first = self._drift_to
        closed = [i for i, one in enumerate(self._breakers) if one.state == "closed"]
        # A drift alarm does not end service: where its rung is open, those above go on.
        held = tuple(i for i in closed if i >= first)
        return held or (tuple(closed) if self._pinned is None else ())

    def _below(self, rung: int) -> bool:
        """Tell whether another rung serves if this one does not."""
        return any(one > rung for one in self._closed())

    def _passed(self, now: float, rung: int, seconds: float) -> None:
        breaker, before = self._breakers[rung], self.mode
        if breaker.is_slow(seconds):
            evidence = {"probe_ms": 1e3 * seconds, "limit_ms": breaker.limits.p99_ms}
            self._open(now, rung, "latency", evidence)
        elif breaker.probed(now):
            self._note(rung, before, "probes passed", {"probes": breaker.limits.probes})

    def _open(self, now: float, rung: int, reason: TripReason, evidence: Evidence) -> None:
        before = self.mode
        cool_down = self._breakers[rung].open(now)
        self._note(rung, before, reason, {**evidence, "cool_down_s": cool_down})

    def _note(self, rung: int, before: str, reason: TripReason, evidence: Evidence) -> None:
        self._change(self.names[rung], self._breakers[rung].state, before, reason, evidence)

    def _change(
        self,
        rung: str,
        state: State | Literal["on", "off"],
        before: str,
        reason: TripReason,
        evidence: Evidence,
    ) -> None:
        self._calm = None
        self._changes.append(Transition(rung, state, before, self.mode, reason, evidence))
