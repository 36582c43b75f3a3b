"""The guard's state machine: its transitions, and their tables in docs/how-the-guard-decides.md."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.serving.guard.policy import CoolDownSection
from moh_deploy.serving.guard.state_machine import (
    LEVEL_MOVES,
    NOWHERE,
    Breaker,
    Drifted,
    Event,
    FallbackChain,
    GuardState,
    LevelAnswered,
    LevelFailed,
    Pinned,
    TimePassed,
    Transition,
)
from tests.serving.guard.chains import chain_policy

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
    tried = Tried(probes=3)
    tried.fail(0)
    for now in (10, 11, 12):
        assert tried.route(now) == ((1, 2), 0)
        tried.probe(now)
    assert tried.route(13) == ((0, 1, 2), None)


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
    assert tried.changes[0].evidence == {"layer": "blocks.0.attn", "cool_down_s": 10}


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


# docs/how-the-guard-decides.md has tables of the guard's states, with the transitions of the code.


PAGE = Path(__file__).parents[3] / "docs" / "how-the-guard-decides.md"
CHAIN = FallbackChain(chain_policy(3, drift_to=2, probes=1))
REASONS = {reason for _, reason in LEVEL_MOVES}
EVENTS: list[Event] = [
    *(LevelFailed(level, reason) for level in range(3) for reason in REASONS),
    *(LevelAnswered(level, 0.01) for level in range(3)),
    *(Pinned(level) for level in (None, 0, 1, 2)),
    Drifted(),
    TimePassed(),
]

Move = tuple[str, str, str]  # from, reason, to


def listed(title: str) -> set[Move]:
    """Return the transitions of the first table below a title: its rows are reasons, and its
    columns the states before."""
    below = PAGE.read_text().split(f"## {title}\n")[1]
    header, _, *rows = below[below.index("|") :].split("\n\n")[0].splitlines()
    sources = cells(header)[1:]
    return {
        (source, reason, target)
        for row in rows
        for source, targets in zip(sources, cells(row)[1:], strict=True)
        for reason in re.findall(r"`([^`]+)`", cells(row)[0])
        for target in filter(None, targets.split(", "))
    }


def cells(row: str) -> list[str]:
    """Return the texts of a table's row."""
    return [cell.strip() for cell in row.strip("|").split("|")]


def simplest(state: GuardState) -> GuardState:
    """Return a state without its times and counts: there are as many as combinations."""

    def bare(breaker: Breaker) -> Breaker:
        return Breaker(breaker.state, until=0.0)

    return replace(state, levels=tuple(map(bare, state.levels)), drift=bare(state.drift))


Steps = dict[GuardState, list[tuple[GuardState, tuple[Transition, ...]]]]


@pytest.fixture(scope="module")
def steps() -> Steps:
    """Every state that can be reached, to what follows from it by each event."""
    found: Steps = {}
    todo = [simplest(CHAIN.start)]
    while todo:
        state = todo.pop()
        if state not in found:
            followed = [CHAIN.after(state, event, 0.0) for event in EVENTS]
            found[state] = [(simplest(after), changes) for after, changes in followed]
            todo += [after for after, _ in found[state]]
    return found


def test_the_table_of_a_levels_states_is_that_of_its_moves():
    assert listed("States of a level") == {
        (state, why, to) for (state, why), to in LEVEL_MOVES.items()
    }


def test_every_move_of_the_table_happens(steps: Steps):
    changed = {
        (breaker.state, change.reason, change.state)
        for before, followed in steps.items()
        for _, changes in followed
        for change in changes
        for name, breaker in zip(CHAIN.names, before.levels, strict=True)
        if change.rung == name and change.state not in ("on", "off")
    }
    assert changed == {(state, why, to) for (state, why), to in LEVEL_MOVES.items()}


def test_the_table_of_the_mode_has_every_change_of_the_level_that_serves(steps: Steps):
    called = {CHAIN.names[0]: "first", NOWHERE: "none"}
    changed = {
        (called.get(change.mode_from, "lower"), change.reason, called.get(change.mode_to, "lower"))
        for followed in steps.values()
        for _, changes in followed
        for change in changes
        if change.mode_from != change.mode_to
    }
    assert listed("The mode") == changed


def test_every_combination_of_states_is_reached_and_left_for_the_first(steps: Steps):
    assert len(steps) == 3**3 * 2 * 4  # levels, drift, the switch
    returning = {simplest(CHAIN.start)}
    grew = True
    while grew:
        more = {s for s, followed in steps.items() if returning & {after for after, _ in followed}}
        grew = not more <= returning
        returning |= more
    assert returning == steps.keys()
