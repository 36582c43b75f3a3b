"""Decide which fallback level may answer: the guard as a state machine.

    state, transitions = chain.after(state, event, now)

Nothing here reads a clock, takes a lock, opens a file or runs a model: `guard.py` does, and passes
in events and times. Each level of the fallback chain is a circuit breaker:

    closed     it serves, or stands by below the level that serves
    open       it rests until its cool-down is over
    half-open  it runs beside the level that serves, and its answers are compared and dropped

`LEVEL_MOVES` lists all that moves a level. The level that serves is the first closed one, from the
pinned level on, or else from the level for drift on. docs/how-the-guard-decides.md has tables of
both.

A level is blamed for an answer only while a lower level serves too, so an answer never opens the
last one. Otherwise a request that no level can answer would end the service for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from moh_deploy.serving.guard.policy import CoolDownSection, GuardPolicy

LevelState = Literal["closed", "open", "half-open"]
MoveReason = Literal[
    "non-finite outputs",
    "non-finite gates",
    "kernel error",
    "cannot be opened",
    "wrong known answer",  # to a recorded run, before the level was to serve
    "process died",  # while the level was running
    "other answers",  # than a level that is proven to give the same
    "latency",
    "drift",
    "drift is over",
    "cool-down is over",
    "probes passed",
    "manual",
    "control file",  # which cannot be obeyed
]
Evidence = Mapping[str, str | float | int | None]

# Seen before the answer is given, so that a lower level gives another.
WRONG_ANSWERS: tuple[MoveReason, ...] = ("non-finite outputs", "non-finite gates", "kernel error")

# Open any level, the last one too: it has no answer that could be given.
CANNOT_SERVE: tuple[MoveReason, ...] = ("cannot be opened", "wrong known answer")

_FAILURES: tuple[MoveReason, ...] = (*WRONG_ANSWERS, "other answers", "latency", *CANNOT_SERVE)

# State and reason to the next state; a level ignores every other reason.
LEVEL_MOVES: Mapping[tuple[LevelState, MoveReason], LevelState] = {
    **{("closed", reason): "open" for reason in _FAILURES},
    ("closed", "process died"): "open",
    ("open", "process died"): "open",
    ("open", "cool-down is over"): "half-open",
    ("half-open", "probes passed"): "closed",
    **{("half-open", reason): "open" for reason in _FAILURES},
}

NOWHERE = "none"  # the mode in which no level serves


@dataclass(frozen=True)
class LevelFailed:
    """A level has given a wrong answer, was too slow, or cannot serve."""

    level: int
    reason: MoveReason
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class LevelAnswered:
    """A level has given a right answer, to a client or to a probe."""

    level: int
    seconds: float


@dataclass(frozen=True)
class Drifted:
    """`moh-deploy watch` has raised an alarm."""

    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class Pinned:
    """The manual switch was set to a level, or released by None."""

    level: int | None
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class ControlRefused:
    """The control file holds something that cannot be obeyed."""

    problem: str


@dataclass(frozen=True)
class TimePassed:
    """Cool-downs may be over. Every request brings this event."""


Event = LevelFailed | LevelAnswered | Drifted | Pinned | ControlRefused | TimePassed


@dataclass(frozen=True)
class Breaker:
    """The state of a level. A drift alarm is a breaker too: open while it holds."""

    state: LevelState = "closed"
    until: float = -math.inf  # when its cool-down is over
    openings: int = 0  # without a stable time between
    closed_at: float = -math.inf
    faults: tuple[float, ...] = ()  # times of recent wrong answers, while it is closed
    passed: int = 0  # right answers in a row, while it is half-open

    def moved(self, to: LevelState, now: float, cool_down: CoolDownSection) -> Breaker:
        """Return the breaker in another state."""
        if to == "closed":
            return replace(self, state=to, closed_at=now)
        if to == "half-open":
            return replace(self, state=to, passed=0)
        is_stable = self.state == "closed" and now - self.closed_at >= cool_down.stable_s
        openings = 0 if is_stable else self.openings
        until = now + cool_down.seconds(openings)
        return replace(self, state=to, until=until, openings=openings + 1, faults=())


@dataclass(frozen=True)
class GuardState:
    """The whole state of a guard: of its levels, of the drift alarm, and of the manual switch."""

    levels: tuple[Breaker, ...]
    drift: Breaker = Breaker()
    pinned: int | None = None


@dataclass(frozen=True)
class Transition:
    """A change of the state, as the audit log has it."""

    rung: str  # the level that changed or was pinned; empty for drift and the control file
    state: LevelState | Literal["on", "off"]
    mode_from: str  # the level that served before
    mode_to: str  # the level that serves now: often the same
    reason: MoveReason
    evidence: Evidence = field(default_factory=dict)  # the figures behind the reason


Step = tuple[GuardState, tuple[Transition, ...]]


class FallbackChain:
    """The transitions of a guard over the levels of a policy."""

    def __init__(self, policy: GuardPolicy) -> None:
        self.policy = policy
        self.names = policy.names
        self.start = GuardState((Breaker(),) * len(self.names))
        self._level_for_drift = 0 if policy.drift is None else self.names.index(policy.drift.rung)

    def serving(self, state: GuardState) -> tuple[int, ...]:
        """Return the levels that may give their answers to clients, in order."""
        first = state.pinned or 0
        if state.pinned is None and state.drift.state == "open":
            first = self._level_for_drift
        closed = tuple(i for i, level in enumerate(state.levels) if level.state == "closed")
        held = tuple(i for i in closed if i >= first)
        # A drift alarm does not end service: if its level is open, those above go on.
        return held if held or state.pinned is not None else closed

    def mode(self, state: GuardState) -> str:
        """Return the name of the level that serves; NOWHERE if none does."""
        serving = self.serving(state)
        return self.names[serving[0]] if serving else NOWHERE

    def has_lower(self, state: GuardState, level: int) -> bool:
        """Tell whether a lower level goes on serving if this one opens."""
        return any(index > level for index in self.serving(state))

    def route(self, state: GuardState) -> tuple[tuple[int, ...], int | None]:
        """Return the levels that may answer a request, in order, and the level to probe with it."""
        serving = self.serving(state)
        half_open = tuple(
            index
            for index, level in enumerate(state.levels)
            if level.state == "half-open" and index >= (state.pinned or 0)
        )
        # Where no level serves, half-open ones do: each answer is judged before it is given.
        if not serving:
            return half_open, None
        return serving, half_open[0] if half_open else None

    def after(self, state: GuardState, event: Event, now: float) -> Step:
        """Return the state after an event, and its changes. The clock only goes forward."""
        match event:
            case LevelFailed():
                return self._failed(state, event, now)
            case LevelAnswered():
                return self._answered(state, event, now)
            case Drifted():
                return self._drifted(state, event, now)
            case Pinned() if event.level != state.pinned:
                after = replace(state, pinned=event.level)
                if event.level is None:
                    return self._changed(state, after, "", "off", "manual", event.evidence)
                name = self.names[event.level]
                return self._changed(state, after, name, "on", "manual", event.evidence)
            case ControlRefused():
                evidence = {"error": event.problem}
                return self._changed(state, state, "", "off", "control file", evidence)
            case TimePassed():
                return self._time_passed(state, now)
        return state, ()

    def _failed(self, state: GuardState, failed: LevelFailed, now: float) -> Step:
        level, reason = state.levels[failed.level], failed.reason
        # Several requests may have been on their way when the first of them opened the level.
        if (level.state, reason) not in LEVEL_MOVES:
            return state, ()
        if level.state != "half-open" and reason not in CANNOT_SERVE:
            if not self.has_lower(state, failed.level):
                return state, ()
            if reason in WRONG_ANSWERS:
                faults = self.policy.faults
                recent = tuple(time for time in level.faults if time >= now - faults.window_s)
                level = replace(level, faults=(*recent, now))
                if len(level.faults) < faults.count:
                    return _with_level(state, failed.level, level), ()
        return self._moved(state, failed.level, reason, failed.evidence, now)

    def _answered(self, state: GuardState, answered: LevelAnswered, now: float) -> Step:
        index, level = answered.level, state.levels[answered.level]
        if level.state != "half-open":
            return state, ()
        limit_ms, probes = self.policy.rungs[index].p99_ms, self.policy.probes
        took_ms = 1e3 * answered.seconds
        # The limit to close is below the limit to open: a level at its limit does not flap.
        if limit_ms is not None and took_ms > self.policy.latency.recover_share * limit_ms:
            evidence: Evidence = {"probe_ms": took_ms, "limit_ms": limit_ms}
            return self._moved(state, index, "latency", evidence, now)
        if level.passed + 1 < probes:
            return _with_level(state, index, replace(level, passed=level.passed + 1)), ()
        return self._moved(state, index, "probes passed", {"probes": probes}, now)

    def _drifted(self, state: GuardState, drifted: Drifted, now: float) -> Step:
        if state.drift.state == "open":
            # The same drift goes on: its time does not grow.
            until = max(state.drift.until, now + self.policy.cool_down.first_s)
            return replace(state, drift=replace(state.drift, until=until)), ()
        cool_down = self.policy.cool_down
        drift = state.drift.moved("open", now, cool_down)
        evidence = {**drifted.evidence, "cool_down_s": cool_down.seconds(drift.openings - 1)}
        return self._changed(state, replace(state, drift=drift), "", "on", "drift", evidence)

    def _time_passed(self, state: GuardState, now: float) -> Step:
        changes: tuple[Transition, ...] = ()
        for index, level in enumerate(state.levels):
            if level.state == "open" and now >= level.until:
                state, change = self._moved(state, index, "cool-down is over", {}, now)
                changes += change
        if state.drift.state == "open" and now >= state.drift.until:
            drift = state.drift.moved("closed", now, self.policy.cool_down)
            after = replace(state, drift=drift)
            state, change = self._changed(state, after, "", "off", "drift is over", {})
            changes += change
        return state, changes

    def _moved(
        self, state: GuardState, index: int, reason: MoveReason, evidence: Evidence, now: float
    ) -> Step:
        """Move a level as `LEVEL_MOVES` says."""
        level = state.levels[index]
        to = LEVEL_MOVES[level.state, reason]
        cool_down = self.policy.cool_down
        moved = level.moved(to, now, cool_down)
        if to == "open":
            evidence = {**evidence, "cool_down_s": cool_down.seconds(moved.openings - 1)}
        after = _with_level(state, index, moved)
        return self._changed(state, after, self.names[index], to, reason, evidence)

    def _changed(
        self,
        before: GuardState,
        after: GuardState,
        name: str,
        to: LevelState | Literal["on", "off"],
        reason: MoveReason,
        evidence: Evidence,
    ) -> Step:
        change = Transition(name, to, self.mode(before), self.mode(after), reason, evidence)
        return after, (change,)


def _with_level(state: GuardState, index: int, level: Breaker) -> GuardState:
    return replace(state, levels=(*state.levels[:index], level, *state.levels[index + 1 :]))
