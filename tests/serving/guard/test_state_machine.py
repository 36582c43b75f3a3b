"""The guard's state machine: its transitions, properties of any order of events, its drawing."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moh_deploy.serving.guard.policy import CoolDownSection
from moh_deploy.serving.guard.state_machine import (
    NOWHERE,
    Drifted,
    Event,
    FallbackChain,
    LevelAnswered,
    LevelFailed,
    Pinned,
    TimePassed,
    Transition,
)
from tests.serving.guard.chains import NAMES, chain_policy

COOL_DOWN = CoolDownSection(first_s=10.0, longest_s=40.0, stable_s=60.0)
NAN = "non-finite outputs"


class Tried:
    """A state machine and its state, with short words for events."""

    def __init__(self, levels: int = 3, drift_to: int | None = None, **limits: object) -> None:
        limits = {"p99_ms": 100.0, "probes": 2, "cool_down": COOL_DOWN, **limits}
        self.chain = FallbackChain(chain_policy(levels, drift_to=drift_to, **limits))
        self.state = self.chain.start
        self.changes: list[Transition] = []

    def step(self, now: float, *events: Event) -> None:
        for event in events:
            self.state, changes = self.chain.after(self.state, event, now)
            self.changes += changes

    def route(self, now: float) -> tuple[tuple[int, ...], int | None]:
        self.step(now, TimePassed())
        return self.chain.route(self.state)

    def fail(self, now: float, level: int = 0) -> None:
        """Let a level give NaN and the next one a right answer, to the same request."""
        self.step(now, LevelFailed(level, NAN), LevelAnswered(level + 1, 0.01))

    def probe(self, now: float, seconds: float = 0.01, reason: str | None = None) -> None:
        _, level = self.route(now)
        assert level is not None
        self.step(now, LevelFailed(level, reason) if reason else LevelAnswered(level, seconds))

    @property
    def mode(self) -> str:
        return self.chain.mode(self.state)

    @property
    def states(self) -> list[str]:
        return [level.state for level in self.state.levels]

    @property
    def reasons(self) -> list[str]:
        return [change.reason for change in self.changes]


def test_the_first_level_serves_and_the_others_stand_by():
    assert Tried().route(0) == ((0, 1, 2), None)


def test_a_wrong_answer_that_a_lower_level_gave_rightly_opens_the_level():
    tried = Tried()
    tried.fail(0)
    assert tried.route(9) == ((1, 2), None)
    (change,) = tried.changes
    assert (change.mode_from, change.mode_to, change.reason) == ("kernels", "functions", NAN)
    assert change.evidence["cool_down_s"] == 10


def test_faults_count_within_the_window_only():
    tried = Tried(faults=3)
    for now in (0, 30, 70):  # of 60 seconds
        tried.fail(now)
    assert tried.mode == "kernels"
    tried.fail(80)
    assert tried.mode == "functions"


def test_no_answer_opens_the_last_level_that_serves():
    tried = Tried(2)
    tried.fail(0)
    for reason in (NAN, "kernel error", "other answers", "latency", "process died"):
        tried.step(1, LevelFailed(1, reason))
    assert tried.states == ["open", "closed"]
    tried.step(1, LevelFailed(1, "cannot be opened"))
    assert tried.mode == NOWHERE


def test_a_half_open_level_is_run_beside_and_serves_only_when_its_probes_passed():
    tried = Tried()
    tried.fail(0)
    assert tried.route(10) == ((1, 2), 0)
    tried.probe(10)
    assert tried.route(11) == ((1, 2), 0)
    tried.probe(11)
    assert tried.route(12) == ((0, 1, 2), None)


def test_a_failed_probe_opens_again_and_cools_down_longer_whatever_the_time():
    tried = Tried()
    tried.fail(0)
    tried.probe(1000, reason="other answers")
    assert tried.route(1019) == ((1, 2), None)
    assert tried.route(1020) == ((1, 2), 0)


def test_a_right_answer_counts_from_the_last_wrong_one():
    tried = Tried()
    tried.fail(0)
    tried.probe(10)
    tried.probe(11, reason=NAN)
    tried.probe(31)
    assert tried.states[0] == "half-open"


def test_cool_down_grows_and_is_short_again_after_a_stable_time():
    tried = Tried(probes=1)
    for now in (0, 15, 50, 200):
        tried.fail(now)
        tried.probe(now + 40)
    opened = [change for change in tried.changes if change.state == "open"]
    assert [change.evidence["cool_down_s"] for change in opened] == [10, 20, 40, 10]


def test_a_probe_has_to_be_faster_than_the_limit_that_opens():
    for seconds, state in ((0.08, "half-open"), (0.081, "open")):
        tried = Tried()
        tried.fail(0)
        tried.probe(10, seconds)
        assert tried.states[0] == state


def test_drift_holds_its_level_as_long_as_alarms_come():
    tried = Tried(drift_to=2)
    tried.step(0, Drifted({"layer": "blocks.0.attn"}))
    tried.step(8, Drifted())
    assert tried.route(17) == ((2,), None)
    assert tried.route(18) == ((0, 1, 2), None)
    assert tried.reasons == ["drift", "drift is over"]


def test_drift_without_a_level_for_it_is_logged_and_changes_nothing():
    tried = Tried()
    tried.step(0, Drifted())
    assert tried.mode == "kernels"
    (change,) = tried.changes
    assert (change.reason, change.mode_from, change.mode_to) == ("drift", "kernels", "kernels")


def test_drift_does_not_end_service_where_its_level_is_open():
    tried = Tried(drift_to=2)
    tried.step(0, LevelFailed(2, "cannot be opened"), Drifted())
    assert tried.route(1) == ((0, 1), None)


def test_the_switch_holds_a_level_until_it_is_released():
    tried = Tried(drift_to=2)
    tried.step(0, Pinned(1, {"by": "operator"}), Drifted())
    assert tried.route(1) == ((1, 2), None)
    tried.step(1, Pinned(1), Pinned(None))
    assert tried.route(2) == ((2,), None)
    assert tried.reasons == ["manual", "drift", "manual"]


def test_the_switch_does_not_make_an_open_level_serve():
    tried = Tried(2)
    tried.fail(0)
    tried.step(0, Pinned(0))
    assert tried.route(1) == ((1,), None)


def test_the_switch_keeps_half_open_levels_above_it_from_serving_and_from_probes():
    tried = Tried(2)
    tried.fail(0)
    tried.step(0, Pinned(1))
    assert tried.route(10) == ((1,), None)
    tried.step(10, LevelFailed(1, "cannot be opened"))
    assert tried.route(15) == ((), None)
    assert tried.route(20) == ((1,), None)


def test_where_no_level_is_closed_a_half_open_one_serves_and_comes_back():
    tried = Tried(2)
    tried.step(0, LevelFailed(0, "cannot be opened"), LevelFailed(1, "wrong known answer"))
    assert tried.mode == NOWHERE
    assert tried.route(5) == ((), None)
    assert tried.route(10) == ((0, 1), None)
    tried.step(10, LevelAnswered(0, 0.01), LevelAnswered(0, 0.01))
    assert tried.mode == "kernels"


class ChainMachine(RuleBasedStateMachine):
    """Requests, faults that come and go, slow runs, drift and the switch, in any order."""

    @initialize(levels=st.integers(1, 3), drift=st.booleans())
    def start(self, levels: int, drift: bool) -> None:
        self.tried = Tried(levels, levels - 1 if drift and levels > 1 else None)
        self.now = 0.0
        self.faulty: set[int] = set()
        self.slow: set[int] = set()
        self.missing: set[int] = set()
        self.was_missing = False
        self.opened: dict[str, float] = {}
        self.right = [0] * levels  # answers in a row since the level was opened

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(level=st.integers(0, 2), kind=st.sampled_from(["faulty", "slow", "missing"]))
    def fault_begins(self, level: int, kind: str) -> None:
        getattr(self, kind).add(level)
        self.was_missing |= kind == "missing"

    @rule()
    def faults_end(self) -> None:
        self.faulty.clear()
        self.slow.clear()
        self.missing.clear()

    @rule()
    def alarm(self) -> None:
        self.tried.step(self.now, Drifted())

    @rule(level=st.none() | st.integers(0, 2))
    def switch(self, level: int | None) -> None:
        if level is None or level < len(self.tried.states):
            self.tried.step(self.now, Pinned(level))

    @rule(level=st.integers(0, 2), reason=st.sampled_from(["other answers", "latency"]))
    def a_level_is_found_out_later(self, level: int, reason: str) -> None:
        if level < len(self.tried.states) and self.tried.states[level] == "closed":
            self.tried.step(self.now, LevelFailed(level, reason))
            self.check_changes()

    @rule(times=st.integers(1, 8))
    def requests(self, times: int) -> None:
        for _ in range(times):
            self.request()

    def request(self) -> int | None:
        tried = self.tried
        levels, probe = tried.route(self.now)
        self.check_changes()
        states, pinned = tried.states, tried.state.pinned
        allowed = {"closed"} if "closed" in [states[i] for i in levels] else {"half-open"}
        assert {states[i] for i in levels} <= allowed, "an unproven level was to serve"
        assert all(i >= (pinned or 0) for i in (*levels, *({probe} - {None})))
        if any(s == "closed" for s in states[pinned or 0 :]):
            assert levels, "a closed level is left out"
        failures, served = [], None
        for level in levels:
            if level in self.missing:
                self.event(LevelFailed(level, "cannot be opened"))
            elif level in self.faulty:
                failures.append(LevelFailed(level, NAN))
            else:
                for failure in failures:
                    self.event(failure)
                self.event(LevelAnswered(level, self.seconds(level)))
                served = level
                break
        if probe is not None and served is not None:
            assert states[probe] == "half-open"
            is_wrong = probe in self.faulty | self.missing
            answer = (
                LevelFailed(probe, NAN) if is_wrong else LevelAnswered(probe, self.seconds(probe))
            )
            self.event(answer)
        return served

    def event(self, event: LevelFailed | LevelAnswered) -> None:
        state = self.tried.states[event.level]
        if isinstance(event, LevelAnswered) and state == "half-open":
            self.right[event.level] += 1
        self.tried.step(self.now, event)
        self.check_changes()

    def seconds(self, level: int) -> float:
        return 0.5 if level in self.slow else 0.01

    def check_changes(self) -> None:
        for change in self.tried.changes:
            level = NAMES.index(change.rung) if change.rung else -1
            if change.state == "open":
                self.opened[change.rung], self.right[level] = self.now, 0
            elif change.state == "closed":
                assert self.now - self.opened[change.rung] >= COOL_DOWN.first_s
                assert self.right[level] >= 2, "it came back without its probes"
        self.tried.changes.clear()

    @precondition(lambda self: self.tried.state.pinned is None)
    @rule()
    def it_returns_after_faults_end(self) -> None:
        self.faults_end()
        served = None
        for _ in range(60):
            self.now += 10
            served = self.request()
        assert served == 0
        assert set(self.tried.states) == {"closed"}

    @invariant()
    def no_answer_opens_the_last_level(self) -> None:
        assert self.was_missing or self.tried.states[-1] == "closed"


ChainMachine.TestCase.settings = settings(stateful_step_count=40, deadline=None)
TestChain = ChainMachine.TestCase
