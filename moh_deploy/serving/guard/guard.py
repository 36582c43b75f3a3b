"""Run every batch on the fastest rung that may be trusted, and move along the ladder as they fail.

An answer that was judged wrong is never given where a rung below can answer: the same batch is
answered by that rung at once. What no rung answers rightly is an error.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description
from moh_deploy.serving.guard.answer_check import AnswerCheck
from moh_deploy.serving.guard.aside import Aside
from moh_deploy.serving.guard.audit import AuditLog
from moh_deploy.serving.guard.control import Control, ControlFile
from moh_deploy.serving.guard.faults import Faults
from moh_deploy.serving.guard.guard_counts import REFUSALS, GuardCounts
from moh_deploy.serving.guard.ladder import Rung
from moh_deploy.serving.guard.ladder_state import (
    Evidence,
    LadderState,
    Route,
    RungFailure,
    Transition,
    TripReason,
)
from moh_deploy.serving.guard.running_marks import RunningMarks
from moh_deploy.serving.guard.same_answers import Comparison
from moh_deploy.serving.metrics import Family
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.function_bodies import Recorder
from moh_deploy.validate.reference.layer_values import LayerValues

_STEP_S = 0.1
"""Between two probes: they take from the machine what answers need."""


@dataclass(frozen=True)
class Watched:
    """The values that a guard looks at beside outputs.

    Attributes:
        check: Judges answers.
        gates: Names of the gates that each run returns for that.
        package: What the rungs with the same answers compute; None of an engine.
        layers: Where the inner values of its layers are.
    """

    check: AnswerCheck
    gates: tuple[str, ...]
    package: OnnxPackage | None
    layers: tuple[LayerValues, ...]


@dataclass(frozen=True)
class Hands:
    """The files, faults and clocks of a guard: all that is outside of it.

    Attributes:
        audit: Where transitions are written.
        marks: Which rungs are running, for who comes after this process.
        control: The control file; None without.
        faults: What a drill plants; None where no drill is allowed.
        spot_checks: The share of answers that are computed once more and compared.
        clock: Seconds that only go forward.
        wall_clock: Seconds since 1970.
    """

    audit: AuditLog
    marks: RunningMarks
    control: ControlFile | None = None
    faults: Faults | None = None
    spot_checks: float = 0.0
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


class Guard:
    """Runs batches on a ladder of rungs. Several threads may ask at the same time.

    Args:
        rungs: The ladder, the fastest first.
        state: Which of them may serve.
        watched: What is looked at.
        hands: What is read and written.
        resources: What is to be closed with it.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        state: LadderState,
        watched: Watched,
        hands: Hands,
        resources: ExitStack | None = None,
    ) -> None:
        self._rungs = tuple(rungs)
        self._state = state
        self._watched = watched
        self._hands = hands
        self._resources = resources or ExitStack()
        self._lock = threading.Lock()
        self._draw = random.Random(0)
        self._aside = Aside("guard")
        self._is_probing = False
        self._drift = ""
        self._file_pin: str | None = None  # what the control file said last
        self._next_probe = float("-inf")
        self._transitions: Counter[tuple[str, str, TripReason]] = Counter()
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self._compared: Counter[tuple[str, str]] = Counter()
        self._why: str = ""

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch; see `BatchSource.run`."""
        self._obey_control()
        with self._lock:
            route = self._state.route(self._hands.clock())
            self._publish()
        wanted = tuple(dict.fromkeys((*self._watched.gates, *inner)))
        tried: list[_Tried] = []
        for index in route.rungs:
            found = self._try(index, inputs, outputs, wanted)
            if isinstance(found, Ran):
                return self._answered(found, index, tried, route, inputs, outputs, requests)
            if found is not None:
                tried.append(found)
        raise self._no_answer(tried, requests)

    def _try(
        self,
        index: int,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        wanted: Sequence[str],
    ) -> Ran | _Tried | None:
        """Run a batch on one rung: what it answered, what is wrong with that, or None if it cannot
        be opened."""
        rung = self._rungs[index]
        try:
            rung.open()
        except MoHDeployError as error:
            print(f"warning: rung '{rung.found.name}' stays closed: {error}", file=sys.stderr)
            with self._lock:
                self._compared["known answer", "other"] += isinstance(error, ValidationError)
                self._state.unavailable(self._hands.clock(), index, error)
                self._publish()
            return None
        try:
            with self._hands.marks.during(index):
                results, seconds = rung.run(inputs, outputs, wanted)
        except BackendError as error:
            failure = RungFailure(index, "kernel error", {"error": error.message[:500]})
            return _Tried(failure, float("inf"), error)
        wrong = self._watched.check.wrong(inputs, results)
        if wrong is None:
            return Ran(results, rung.found.name, seconds)
        evidence: Evidence = {"value": wrong.value, "samples": len(wrong.samples)}
        refused = BackendError(
            f"the answer is not finite: {wrong.reason} in '{wrong.value}', and no rung of the"
            " ladder has a better one.",
            hint="The inputs are finite: the model itself has no answer to them.",
        )
        return _Tried(RungFailure(index, wrong.reason, evidence), len(wrong.samples), refused)

    def _answered(
        self,
        ran: Ran,
        index: int,
        tried: Sequence[_Tried],
        route: Route,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        requests: int,
    ) -> Ran:
        failures = [one.failure for one in tried]
        with self._lock:
            now = self._hands.clock()
            if failures:
                self._state.failed(now, failures)
            self._state.answered(now, index, ran.seconds)
            if index != 0:
                reason = failures[0].reason if failures else self._why or "cannot be opened"
                self._fallbacks[reason, ran.rung] += requests
            probe = None if tried or not self._takes_probe(route, now) else route.probe
            share = self._hands.spot_checks
            spot = probe is None and share > 0 and self._draw.random() < share
            self._publish()
        # Copied for the thread beside: buffers may be a client's, gone once it has its answer.
        if probe is not None:
            copied = {name: np.array(one) for name, one in inputs.items()}
            if not self._aside.submit(lambda: self._probe(probe, copied, outputs)):
                self._is_probing = False
        elif spot and self._reference(index) is not None:
            copied = {name: np.array(one) for name, one in inputs.items()}
            self._aside.submit(lambda: self._spot_check(index, copied, ran.results))
        return ran

    def _no_answer(self, tried: Sequence[_Tried], requests: int) -> MoHDeployError:
        """Blame the rungs that did worse than one below them, and return the error."""
        # Requests that were joined run again, each alone: those that then fail are refused.
        refused = requests == 1
        with self._lock:
            if tried:
                best = min(tried, key=lambda one: one.bad)
                blamed = [
                    one.failure
                    for one in tried
                    if one.bad > best.bad and one.failure.rung < best.failure.rung
                ]
                self._state.failed(self._hands.clock(), blamed)
                self._refused[best.failure.reason] += refused
                self._publish()
                return best.error
            self._refused["no rung"] += refused
        states = ", ".join(f"{name} is {state}" for name, state in self._state.states.items())
        return BackendError(
            f"no rung of the ladder can answer now: {states}.", hint="Try again later."
        )

    def _takes_probe(self, route: Route, now: float) -> bool:
        """Tell whether a probe begins: one at a time."""
        if route.probe is None or self._is_probing or now < self._next_probe:
            return False
        self._is_probing = True
        return True

    def _probe(self, index: int, inputs: dict[str, Array], outputs: Sequence[str]) -> None:
        """Run a half-open rung on a request that was answered, and compare."""
        try:
            names = [name for layer in self._watched.layers for name in layer.names]
            wanted = tuple(dict.fromkeys((*self._watched.gates, *names)))
            found = self._try(index, inputs, outputs, wanted)
            if found is None:
                return
            failure = None
            if isinstance(found, _Tried):
                failure, seconds = found.failure, 0.0
            else:
                failure, seconds = self._other_answer(index, inputs, found.results), found.seconds
            with self._lock:
                self._compared["probe", "other" if failure else "same"] += 1
                self._state.probed(self._hands.clock(), index, seconds, failure)
                self._publish()
        finally:
            self._next_probe = self._hands.clock() + _STEP_S
            self._is_probing = False

    def _spot_check(
        self, index: int, inputs: dict[str, Array], results: Mapping[str, Array]
    ) -> None:
        """Compute an answer that was given once more, by the next rung, and compare."""
        failure = self._other_answer(index, inputs, results)
        with self._lock:
            self._compared["spot check", "other" if failure else "same"] += 1
            if failure is not None:
                self._state.disagreed(self._hands.clock(), failure)
            self._publish()

    def _other_answer(
        self, index: int, inputs: dict[str, Array], results: Mapping[str, Array]
    ) -> RungFailure | None:
        """Return what is wrong with results, by the next rung that is to compute the same."""
        below = self._reference(index)
        package, layers = self._watched.package, self._watched.layers
        if below is None or package is None:
            return None
        rung = self._rungs[index]
        recorder = Recorder(package, below.open(), layers)
        comparison = Comparison(package, layers, recorder, below.found.name)
        report = comparison.report(inputs, results, rung.describe(), rung.found.variant)
        if report.verdict != "not equal":
            return None
        evidence: Evidence = {"compared_with": below.found.name, "why": report.reasons[0][:500]}
        return RungFailure(index, "other answers", evidence)

    def _reference(self, index: int) -> Rung | None:
        """Return the rung below that is proven to give the same answers, and serves."""
        if not self._rungs[index].found.same_answers or self._watched.package is None:
            return None
        states = self._state.states
        for rung in self._rungs[index + 1 :]:
            if rung.found.same_answers and states[rung.found.name] == "closed":
                return rung
        return None

    def pin(self, rung: str | None, by: str) -> None:
        """Let a rung and those below it serve only; None releases the switch.

        Raises:
            ConfigError: There is no such rung.
        """
        if rung is not None and rung not in self._state.names:
            raise ConfigError(
                f"there is no rung '{rung}', expected one of {', '.join(self._state.names)}."
            )
        with self._lock:
            if rung != self._state.pinned:
                self._state.pin(rung, {"by": by})
                self._publish()

    def drifted(self, evidence: Evidence) -> None:
        """Take note of an alarm of `moh-deploy watch`."""
        with self._lock:
            self._state.drifted(self._hands.clock(), evidence)
            self._publish()

    def tick(self) -> None:
        """Follow control file and clock where no request comes."""
        self._obey_control()
        with self._lock:
            self._state.route(self._hands.clock())
            self._publish()

    @property
    def mode(self) -> str:
        """The rung that serves."""
        with self._lock:
            return self._state.mode

    @property
    def pinned(self) -> str | None:
        """The rung that the manual switch holds; None if it is off."""
        with self._lock:
            return self._state.pinned

    @property
    def is_drifting(self) -> bool:
        """Whether an alarm of drift holds."""
        with self._lock:
            return self._state.is_drifting

    @property
    def states(self) -> Mapping[str, str]:
        """Each rung's state, in order."""
        with self._lock:
            return dict(self._state.states)

    def wait(self) -> None:
        """Wait until what runs beside the answers is done."""
        self._aside.wait()

    def describe(self) -> Description:
        """Say what runs each layer of the rung that serves, or of one that is open."""
        mode = self.mode
        serving = [rung for rung in self._rungs if rung.found.name == mode]
        opened = [rung for rung in self._rungs if rung.is_open]
        return (*serving, *opened, *self._rungs)[0].describe()

    def families(self) -> tuple[Family, ...]:
        """Return what it has counted so far."""
        beside = self._aside
        with self._lock:
            counts = GuardCounts(
                states=self._state.states,
                mode=self._state.mode,
                transitions=dict(self._transitions),
                fallbacks=dict(self._fallbacks),
                refused=dict(self._refused),
                compared={
                    **self._compared,
                    ("aside", "dropped"): beside.dropped,
                    ("aside", "failed"): beside.failed,
                },
            )
        return counts.families()

    def close(self) -> None:
        """Give back all rungs and the log."""
        self._aside.close()
        for rung in self._rungs:
            rung.close()
        self._hands.audit.close()
        self._hands.marks.close()
        self._resources.close()

    def _obey_control(self) -> None:
        control, now = self._hands.control, self._hands.clock()
        if control is None:
            return
        with self._lock:
            if not control.is_due(now):
                return
            try:
                said = control.changed()
                if said is not None:
                    self._obey(said)
            except ConfigError as error:
                self._note_control(error.message)
            if self._drift:
                self._state.drifted(now, {"alarm": self._drift})
            self._publish()

    def _obey(self, said: Control) -> None:
        faults = self._hands.faults
        if faults is not None:
            faults.plant(frozenset(said.faults))
        elif said.faults:
            self._note_control("faults are named, and this server was not started for a drill.")
        drills_drift = faults is not None and "drift" in faults.planted
        self._drift = said.drift or ("planted by a drill" if drills_drift else "")
        if said.pin is not None and said.pin not in self._state.names:
            known = ", ".join(self._state.names)
            self._note_control(f"pin is '{said.pin}', which is no rung; expected one of {known}.")
        elif said.pin != self._file_pin:
            # A file about something else leaves a switch as it is that was set by another hand.
            self._file_pin = said.pin
            if said.pin != self._state.pinned:
                self._state.pin(said.pin, {"by": "control file"})

    def _note_control(self, problem: str) -> None:
        # Who wrote the file may keep no log, and would wait for what never comes.
        print(f"warning: the control file is not obeyed: {problem}", file=sys.stderr, flush=True)
        mode = self._state.mode
        change = Transition("", "off", mode, mode, "control file", {"error": problem})
        self._hands.audit.add(change, self._hands.wall_clock())

    def _publish(self) -> None:
        """Write and count what has changed; called with the lock held."""
        if not self._state.has_changed:
            return
        for change in self._state.take():
            self._hands.audit.add(change, self._hands.wall_clock())
            if change.mode_from != change.mode_to:
                self._transitions[change.mode_from, change.mode_to, change.reason] += 1
                self._why = change.reason
            if change.state == "open":
                self._rungs[self._state.names.index(change.rung)].distrust()
            if change.state == "open" and change.reason == "kernel error":
                # A session that failed may fail for ever: what is probed is a new one.
                self._rungs[self._state.names.index(change.rung)].forget()


@dataclass(frozen=True)
class _Tried:
    """A rung that did not answer rightly: why, how many samples are wrong, and what to raise."""

    failure: RungFailure
    bad: float
    error: MoHDeployError
