"""docs/production.md draws the guard's states: its drawings have the transitions of the code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

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

PAGE = Path(__file__).parents[3] / "docs" / "production.md"
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


def drawn(title: str) -> set[Move]:
    """Return the transitions of the drawing below a title."""
    block = PAGE.read_text().split(f"**{title}**")[1].split("```mermaid\n")[1].split("```")[0]
    names = {short: name for name, short in re.findall(r'state "(.+)" as (\w+)', block)}
    return {
        (names.get(source, source), reason, names.get(target, target))
        for source, target, reasons in re.findall(r"(\w+) --> (\w+): (.+)", block)
        for reason in reasons.split(", ")
    }


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


def test_the_drawing_of_a_level_is_the_table_of_its_moves():
    assert drawn("A level") == {(state, why, to) for (state, why), to in LEVEL_MOVES.items()}


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


def test_the_drawing_of_the_mode_has_every_change_of_the_level_that_serves(steps: Steps):
    called = {CHAIN.names[0]: "first", NOWHERE: "none"}
    changed = {
        (called.get(change.mode_from, "lower"), change.reason, called.get(change.mode_to, "lower"))
        for followed in steps.values()
        for _, changes in followed
        for change in changes
        if change.mode_from != change.mode_to
    }
    assert drawn("The mode") == changed


def test_every_combination_of_states_is_reached_and_left_for_the_first(steps: Steps):
    assert len(steps) == 3**3 * 2 * 4  # levels, drift, the switch
    returning = {simplest(CHAIN.start)}
    grew = True
    while grew:
        more = {s for s, followed in steps.items() if returning & {after for after, _ in followed}}
        grew = not more <= returning
        returning |= more
    assert returning == steps.keys()
