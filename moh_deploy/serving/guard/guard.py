"""Run each batch on the fastest level of a fallback chain that may be trusted.

`state_machine.py` decides which level that is. The guard around it holds the lock and the clock,
runs the levels, judges their answers, and writes the audit log. A wrong answer is not given where a
lower level has a right one: the same batch runs there at once.
"""

import math
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError, ValidationError
from moh_deploy.runtime.base import Deployed, Description
from moh_deploy.runtime.input_check import empty_axis
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.guard import state_machine as machine
from moh_deploy.serving.guard.answer_check import AnswerCheck, LatencyWindow, is_float
from moh_deploy.serving.guard.fallback_level import FallbackLevel
from moh_deploy.serving.guard.guard_io import AuditLog, ControlFile, GuardMetrics, RunningMarks
from moh_deploy.serving.guard.policy import GuardPolicy
from moh_deploy.serving.guard.same_answers import BackgroundJobs, Comparison
from moh_deploy.serving.metrics import Family
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.layer_values import Recorder, layer_values

_PROBE_EVERY_S = 0.1  # probes take time from the machine that answers need


@dataclass(frozen=True)
class GuardIO:
    """The files of a guard, and its clock."""

    audit: AuditLog
    marks: RunningMarks
    control: ControlFile | None = None
    resources: ExitStack = field(default_factory=ExitStack)  # closed with the guard
    clock: Callable[[], float] = time.monotonic


class _Wrong(NamedTuple):
    """An answer that is not given: why, its wrong samples, and the error if none is better."""

    failure: machine.LevelFailed
    samples: float
    error: MoHDeployError


class Guard:
    """Runs batches on a fallback chain. Several threads may call it at the same time."""

    def __init__(
        self, model: Deployed, levels: Sequence[FallbackLevel], policy: GuardPolicy, io: GuardIO
    ) -> None:
        self._levels = tuple(levels)
        self._io = io
        self._chain = machine.FallbackChain(policy)
        self._state = self._chain.start
        self._lock = threading.RLock()  # of the state, the latency windows and the metrics
        self._latency = [LatencyWindow(level.p99_ms, policy.latency) for level in policy.rungs]
        self._metrics = GuardMetrics()
        self._package = None if model.is_compiled else model.made_from(None)
        self._layers = () if self._package is None else layer_values(self._package)
        self._check = AnswerCheck(
            [output.name for output in model.manifest.outputs],
            () if self._package is None else self._package.gate_names,
            () if self._package is None else self._package.vectors,
            has_samples=BatchAxis.of(model.manifest) is not None,
        )
        self._background = BackgroundJobs("guard")
        self._draw = random.Random(0)
        self._next_probe = float("-inf")  # infinity while a probe runs

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch; see `BatchSource.run`."""
        with self._lock:
            self.tick()
            levels, probe = self._chain.route(self._state)
        wanted = tuple(dict.fromkeys((*self._check.gates, *inner)))
        wrong: list[_Wrong] = []
        for index in levels:
            found = self._try(index, inputs, outputs, wanted)
            if isinstance(found, Ran):
                break
            if found is not None:
                wrong.append(found)
        else:
            raise self._no_answer(wrong, requests)
        with self._lock:
            # The levels above are blamed: this one did better.
            self.apply(*(answer.failure for answer in wrong))
            self._answered(index, found.seconds)
            if index != 0:
                last = self._metrics.last_reason or "cannot be opened"
                reason = wrong[0].failure.reason if wrong else last
                self._metrics.fallbacks[reason, found.rung] += requests
        self._look_again(found, index, None if wrong else probe, inputs, outputs)
        return found

    def _try(
        self, index: int, inputs: Mapping[str, Array], outputs: Sequence[str], wanted: Sequence[str]
    ) -> Ran | _Wrong | None:
        """Run a batch on a level: a right answer, a wrong one, or None if it cannot be opened."""
        level = self._levels[index]
        try:
            runner = level.open()
        except MoHDeployError as error:
            self.apply(cannot_serve(index, level, error))
            return None
        try:
            with self._io.marks.during(index):
                results, seconds = level.run(runner, inputs, outputs, wanted)
        except BackendError as error:
            if empty_axis(level.model.manifest.inputs, inputs) is not None:
                # The client's fault: no level is blamed, and nothing is counted as refused.
                raise ConfigError(error.message, hint=error.hint) from error
            failure = machine.LevelFailed(index, "kernel error", {"error": error.message[:500]})
            return _Wrong(failure, math.inf, error)
        wrong = self._check.wrong(inputs, results)
        if wrong is None:
            return Ran(results, level.name, seconds)
        evidence: machine.Evidence = {"value": wrong.value, "samples": len(wrong.samples)}
        refused = BackendError(
            f"the answer is not finite: {wrong.reason} in '{wrong.value}', and no fallback level"
            " has a better answer.",
            hint="The inputs are finite: the model itself has no answer to them.",
        )
        return _Wrong(
            machine.LevelFailed(index, wrong.reason, evidence), len(wrong.samples), refused
        )

    def _no_answer(self, wrong: Sequence[_Wrong], requests: int) -> MoHDeployError:
        """Blame the levels whose answers are worse than one below, and return the error."""
        # Requests that were joined run again, each alone: those that then fail are refused.
        refused = requests == 1
        with self._lock:
            if wrong:
                best = min(wrong, key=lambda answer: answer.samples)
                self.apply(*(answer.failure for answer in wrong[: wrong.index(best)]))
                self._metrics.refused[best.failure.reason,] += refused
                return best.error
            self._metrics.refused["no rung",] += refused
            states = ", ".join(f"{name} is {state}" for name, state in self.states.items())
        return BackendError(f"no fallback level can answer now: {states}.", hint="Try again later.")

    def _look_again(
        self,
        ran: Ran,
        index: int,
        probe: int | None,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
    ) -> None:
        """Probe a half-open level with a request that was answered, or spot check the answer."""
        answers = [ran.results[name] for name in outputs]
        if any(bool(np.isnan(answer).any()) for answer in answers if is_float(answer)):
            return  # NaN, which a client gets for NaN, equals no answer
        share = self._chain.policy.spot_checks
        with self._lock:
            now = self._io.clock()
            if now < self._next_probe:
                probe = None
            if probe is not None:
                self._next_probe = float("inf")
            elif self._draw.random() >= share or self._reference(index) is None:
                return
        # The buffers may be a client's, gone when it has its answer.
        copied = {name: np.array(array) for name, array in inputs.items()}
        level, given = (index, ran) if probe is None else (probe, None)
        is_taken = self._background.submit(lambda: self._compare(level, copied, outputs, given))
        if given is None and not is_taken:
            self._next_probe = now

    def _compare(
        self, index: int, inputs: dict[str, Array], outputs: Sequence[str], given: Ran | None
    ) -> None:
        """Compare an answer that was given, or a half-open level's own, with a lower level's."""
        names = (name for layer in self._layers for name in layer.names)
        wanted = tuple(dict.fromkeys((*self._check.gates, *names)))
        try:
            found = given or self._try(index, inputs, outputs, wanted)
            if found is None:
                return
            failure = self._other_answer(index, inputs, found)
            kind = "probe" if given is None else "spot check"
            with self._lock:
                self._metrics.compared[kind, "other" if failure else "same"] += 1
                if failure is not None:
                    self.apply(failure)
                elif given is None and isinstance(found, Ran):
                    self._answered(index, found.seconds)
        finally:
            if given is None:
                self._next_probe = self._io.clock() + _PROBE_EVERY_S

    def _other_answer(
        self, index: int, inputs: dict[str, Array], found: Ran | _Wrong
    ) -> machine.LevelFailed | None:
        """Return what is wrong with an answer: seen in itself, or beside a lower level's."""
        if not isinstance(found, Ran):
            return found.failure
        level, below = self._levels[index], self._reference(index)
        if below is None or self._package is None:
            return None
        recorder = Recorder(self._package, below.open(), self._layers)
        comparison = Comparison(self._package, self._layers, recorder, below.name)
        report = comparison.report(inputs, found.results, level.describe(), level.variant)
        if report.verdict != "not equal":
            return None
        evidence: machine.Evidence = {"compared_with": below.name, "why": report.reasons[0][:500]}
        return machine.LevelFailed(index, "other answers", evidence)

    def _reference(self, index: int) -> FallbackLevel | None:
        """Return the next closed level below that is proven to give the same answers."""
        closed = [breaker.state == "closed" for breaker in self._state.levels]
        below = zip(self._levels[index + 1 :], closed[index + 1 :], strict=True)
        same = (level for level, is_closed in below if is_closed and level.same_answers)
        is_comparable = self._package is not None and self._levels[index].same_answers
        return next(same, None) if is_comparable else None

    def pin(self, rung: str | None, by: str) -> None:
        """Let a level and those below it serve only; None releases the switch.

        Raises:
            ConfigError: There is no such level.
        """
        names = self._chain.names
        if rung is not None and rung not in names:
            raise ConfigError(
                f"there is no fallback level '{rung}', expected one of {', '.join(names)}."
            )
        self.apply(machine.Pinned(None if rung is None else names.index(rung), {"by": by}))

    def drifted(self, evidence: machine.Evidence) -> None:
        """Take note of an alarm of `moh-deploy watch`."""
        self.apply(machine.Drifted(evidence))

    def tick(self) -> None:
        """Follow control file and clock: before each request, and where no request comes."""
        with self._lock:
            if self._io.control is not None:
                self.apply(*self._io.control.events(self._io.clock()))
            self.apply(machine.TimePassed())

    def apply(self, *events: machine.Event) -> None:
        """Move the state machine, and do what follows from its transitions."""
        with self._lock:
            now = self._io.clock()
            for event in events:
                self._state, changes = self._chain.after(self._state, event, now)
                for change in changes:
                    self._io.audit.add(change, time.time())
                    self._metrics.changed(change)
                    if change.reason == "control file":
                        # The writer of the file may keep no log, and would wait for nothing.
                        warn(f"the control file is not obeyed: {change.evidence['error']}")
                    if change.state == "open":
                        index = self._chain.names.index(change.rung)
                        self._latency[index].clear()
                        self._levels[index].distrust()
                        if change.reason == "kernel error":
                            # A session that failed may fail for ever: a new one is probed.
                            self._levels[index].forget()

    def _answered(self, index: int, seconds: float) -> None:
        """Take note of a right answer, and of its time. Called with the lock held."""
        latency, state = self._latency[index], self._state
        is_closed = state.levels[index].state == "closed"
        is_slow = is_closed and latency.add(self._io.clock(), seconds)
        if is_slow and self._chain.has_lower(state, index):
            self.apply(machine.LevelFailed(index, "latency", latency.figures()))
        self.apply(machine.LevelAnswered(index, seconds))

    @property
    def mode(self) -> str:
        """The level that serves."""
        return self._chain.mode(self._state)

    @property
    def pinned(self) -> str | None:
        """The level that the manual switch holds; None if it is released."""
        pinned = self._state.pinned
        return None if pinned is None else self._chain.names[pinned]

    @property
    def is_drifting(self) -> bool:
        """Tell whether a drift alarm holds."""
        return self._state.drift.state == "open"

    @property
    def states(self) -> dict[str, machine.LevelState]:
        """The state of each level, in order."""
        levels = zip(self._chain.names, self._state.levels, strict=True)
        return {name: breaker.state for name, breaker in levels}

    def wait(self) -> None:
        """Wait until all probes and spot checks are done."""
        self._background.wait()

    def describe(self) -> Description:
        """Say what runs each layer of the level that serves, or of one that is open."""
        mode = self.mode
        return min(self._levels, key=lambda x: (x.name != mode, not x.is_open)).describe()

    def families(self) -> tuple[Family, ...]:
        """Return the guard's metrics."""
        with self._lock:
            self._metrics.compared["aside", "dropped"] = self._background.dropped
            self._metrics.compared["aside", "failed"] = self._background.failed
            return self._metrics.families(self.states, self.mode)

    def close(self) -> None:
        """Close all levels, the log and the marks."""
        self._background.close()
        for level in self._levels:
            level.close()
        self._io.audit.close()
        self._io.marks.close()
        self._io.resources.close()


def cannot_serve(index: int, level: FallbackLevel, error: MoHDeployError) -> machine.LevelFailed:
    """Return the event of a level that cannot be opened, or answers a recorded run wrongly."""
    warn(f"fallback level '{level.name}' cannot serve: {error}")
    is_wrong = isinstance(error, ValidationError)
    reason: machine.MoveReason = "wrong known answer" if is_wrong else "cannot be opened"
    return machine.LevelFailed(index, reason, {"error": error.message})


def warn(sentence: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
