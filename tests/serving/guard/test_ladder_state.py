import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.serving.guard.breaker import BreakerLimits
from moh_deploy.serving.guard.ladder_state import NOWHERE, LadderState, Route, RungFailure

LIMITS = BreakerLimits(
    cool_down_s=10, longest_cool_down_s=40, stable_s=60, probes=2, p99_ms=100, min_samples=5
)
NAN = "non-finite outputs"


def ladder(rungs: int = 3, drift_to: int | None = None, **changed: float) -> LadderState:
    limits = BreakerLimits(**{**vars(LIMITS), **changed})
    return LadderState(["kernels", "functions", "other"][:rungs], [limits] * rungs, drift_to)


def fail(state: LadderState, now: float, rung: int = 0) -> None:
    """Let a rung give NaN and the next one a right answer, to one request."""
    state.failed(now, [RungFailure(rung, NAN)])
    state.answered(now, rung + 1, 0.01)


def probe(state: LadderState, now: float, failure: RungFailure | None = None) -> None:
    asked = state.route(now).probe
    assert asked is not None
    state.probed(now, asked, 0.01, failure)


def test_the_first_rung_serves_and_the_others_stand_by():
    route = ladder().route(0)
    assert route.rungs == (0, 1, 2)
    assert route.probe is None


def test_a_wrong_answer_that_another_rung_gave_rightly_opens_the_rung():
    state = ladder()
    fail(state, 0)
    assert state.mode == "functions"
    assert state.route(9).rungs == (1, 2)
    (change,) = state.take()
    assert (change.mode_from, change.mode_to, change.reason) == ("kernels", "functions", NAN)
    assert change.evidence["cool_down_s"] == 10


def test_what_no_rung_can_answer_opens_none():
    # A guard is told of failures with the answer that came: without one there is nobody to blame.
    state = ladder()
    for _ in range(100):
        assert state.route(0).rungs == (0, 1, 2)
    assert state.states == {"kernels": "closed", "functions": "closed", "other": "closed"}


def test_a_half_open_rung_is_run_beside_and_serves_only_when_its_probes_passed():
    state = ladder()
    fail(state, 0)
    assert state.route(10).probe == 0
    assert state.route(10).rungs == (1, 2)
    probe(state, 10)
    assert state.route(11).rungs == (1, 2)
    probe(state, 11)
    assert state.route(12).rungs == (0, 1, 2)


def test_a_failed_probe_opens_again_and_cools_down_longer():
    state = ladder()
    fail(state, 0)
    probe(state, 10, RungFailure(0, "other answers"))
    assert state.route(29).probe is None
    assert state.route(30).probe == 0


def test_a_slow_probe_opens_again():
    state = ladder()
    fail(state, 0)
    assert state.route(10).probe == 0
    state.probed(10, 0, 0.09, None)
    assert state.states["kernels"] == "open"


def test_slow_runs_open_a_rung_but_never_the_last():
    state = ladder(2)
    for now in range(20):
        serving = state.route(now).rungs[0]
        state.answered(now, serving, 0.2)
    assert state.states == {"kernels": "half-open", "functions": "closed"}
    assert [one.reason for one in state.take()] == ["latency", "cool-down is over"]


def test_drift_holds_the_rung_that_is_named_for_it_as_long_as_alarms_come():
    state = ladder(drift_to=2)
    state.drifted(0, {"layer": "blocks.0.attn"})
    state.drifted(8, {})
    assert state.route(17).rungs == (2,)
    assert state.route(18).rungs == (0, 1, 2)
    assert [one.reason for one in state.take()] == ["drift", "drift is over"]


def test_drift_without_a_rung_for_it_is_logged_and_changes_nothing():
    state = ladder()
    state.drifted(0, {})
    assert state.mode == "kernels"
    (change,) = state.take()
    assert (change.reason, change.mode_from, change.mode_to) == ("drift", "kernels", "kernels")


def test_the_switch_holds_a_rung_until_it_is_released():
    state = ladder(drift_to=2)
    state.pin("functions", {"by": "operator"})
    state.drifted(0, {})
    assert state.route(1).rungs == (1, 2)
    state.pin(None, {})
    assert state.route(2).rungs == (2,)


def test_the_switch_does_not_make_an_open_rung_serve():
    state = ladder(2)
    fail(state, 0)
    state.pin("kernels", {})
    assert state.route(1).rungs == (1,)


def test_the_switch_keeps_half_open_rungs_above_it_from_serving_and_from_probes():
    state = ladder(2)
    fail(state, 0)
    state.pin("functions", {})
    assert state.route(10) == Route((1,), None)
    state.unavailable(10, 1, PackageError("no file"))
    assert state.route(15).rungs == ()
    assert state.route(20).rungs == (1,)


def test_where_no_rung_is_closed_a_half_open_one_serves_and_comes_back():
    state = ladder(2)
    state.unavailable(0, 0, BackendError("no library"))
    state.unavailable(0, 1, PackageError("no file"))
    assert state.mode == NOWHERE
    assert state.route(5).rungs == ()
    assert state.route(10).rungs == (0, 1)
    state.answered(10, 0, 0.01)
    state.answered(10, 0, 0.01)
    assert state.mode == "kernels"


def test_an_unknown_rung_cannot_be_held():
    with pytest.raises(ValueError, match="not in"):
        ladder().pin("fast", {})


class LadderMachine(RuleBasedStateMachine):
    """Requests, faults that come and go, slow runs, drift and the switch, in any order."""

    @initialize(rungs=st.integers(1, 3), drift=st.booleans())
    def start(self, rungs: int, drift: bool) -> None:
        self.state = ladder(rungs, rungs - 1 if drift else None)
        self.now = 0.0
        self.faulty: set[int] = set()
        self.slow: set[int] = set()
        self.opened: dict[str, float] = {}

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(rung=st.integers(0, 2), slow=st.booleans())
    def fault_begins(self, rung: int, slow: bool) -> None:
        (self.slow if slow else self.faulty).add(rung)

    @rule()
    def faults_end(self) -> None:
        self.faulty.clear()
        self.slow.clear()

    @rule()
    def alarm(self) -> None:
        self.state.drifted(self.now, {})

    @rule(rung=st.none() | st.integers(0, 2))
    def switch(self, rung: int | None) -> None:
        if rung is None or rung < len(self.state.names):
            self.state.pin(None if rung is None else self.state.names[rung], {})

    @rule(times=st.integers(1, 8))
    def requests(self, times: int) -> None:
        for _ in range(times):
            self.request()

    def request(self) -> int | None:
        route, failures = self.state.route(self.now), []
        self.check_changes()
        states = list(self.state.states.values())
        allowed = ("closed",) if "closed" in states else ("closed", "half-open")
        served = None
        for rung in route.rungs:
            assert states[rung] in allowed, "an open rung was to serve"
            if rung in self.faulty:
                failures.append(RungFailure(rung, NAN))
                continue
            self.state.failed(self.now, failures)
            self.state.answered(self.now, rung, self.seconds(rung))
            served = rung
            break
        if route.probe is not None:
            assert states[route.probe] == "half-open"
            found = RungFailure(route.probe, NAN) if route.probe in self.faulty else None
            self.state.probed(self.now, route.probe, self.seconds(route.probe), found)
        self.check_changes()
        return served

    def seconds(self, rung: int) -> float:
        return 0.5 if rung in self.slow else 0.01

    def check_changes(self) -> None:
        for change in self.state.take():
            if change.state == "open":
                self.opened[change.rung] = self.now
            elif change.state == "closed":
                waited = self.now - self.opened[change.rung]
                assert waited >= LIMITS.cool_down_s, "it came back faster than the cool-down"

    @precondition(lambda self: self.state.pinned is None)
    @rule()
    def it_returns_after_faults_end(self) -> None:
        self.faults_end()
        served = None
        for _ in range(40):
            self.now += 10
            served = self.request()
        assert served == 0
        assert set(self.state.states.values()) == {"closed"}

    @invariant()
    def the_last_rung_is_never_opened_by_answers(self) -> None:
        assert list(self.state.states.values())[-1] == "closed"


LadderMachine.TestCase.settings = settings(stateful_step_count=40, deadline=None)
TestLadder = LadderMachine.TestCase
