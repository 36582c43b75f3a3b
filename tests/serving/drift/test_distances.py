"""How far routing is from the reference, in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.serving.drift.distances import by_layer, distances, statistics_of
from tests.serving.drift.traffic import LAYOUT, SHARED, requests

REFERENCE = requests(50, seed=0).sum(axis=0)
FIRST, SECOND = LAYOUT.columns


def named(totals: np.ndarray) -> dict[tuple[int, str | int], float]:
    """Return the distances by layer and name, or head."""
    row = distances(LAYOUT, totals[None], REFERENCE)[0]
    found: dict[tuple[int, str | int], float] = {}
    for number, (of_layer, heads) in enumerate(by_layer(LAYOUT, row)):
        found |= {(number, name): value for name, value in of_layer.items()}
        found |= {(number, head): value for head, value in enumerate(heads)}
    assert len(found) == len(row)
    return found


def test_nothing_moved_where_all_is_as_it_was():
    for scale in (1, 0.5, 7):
        assert max(named(REFERENCE * scale).values()) < 1e-12


def test_layers_without_shared_heads_or_margins_have_no_such_distance():
    first, second = (set(statistics_of(layer)) for layer in LAYOUT.layers)
    assert first - second == {"shared", "margin"}


def test_choice_that_went_to_another_head_is_found():
    totals = REFERENCE.copy()
    moved = 40.0
    totals[FIRST.on.start + SHARED] -= moved
    totals[FIRST.on.start + SHARED + 1] += moved
    found = named(totals)
    tokens = REFERENCE[FIRST.tokens]
    choices = REFERENCE[FIRST.on][SHARED:].sum()
    # Half of what left one head and came to another: the share of choices that moved.
    assert found[0, "load"] == pytest.approx(moved / choices)
    assert found[0, SHARED] == pytest.approx(moved / tokens)
    assert found[0, SHARED + 1] == pytest.approx(moved / tokens)
    assert found[0, "active"] == pytest.approx(0)
    assert not any(value for (layer, _), value in found.items() if layer == 1)


def test_head_that_is_on_more_often_is_no_other_choice_alone():
    totals = REFERENCE.copy()
    totals[SECOND.on] += 8
    found = named(totals)
    assert found[1, "active"] == pytest.approx(4 * 8 / REFERENCE[SECOND.tokens])


def test_gates_that_weigh_shared_heads_more_are_found():
    totals = REFERENCE.copy()
    totals[FIRST.mass][:SHARED] *= 2
    before = REFERENCE[FIRST.mass][:SHARED].sum() / REFERENCE[FIRST.mass].sum()
    after = totals[FIRST.mass][:SHARED].sum() / totals[FIRST.mass].sum()
    found = named(totals)
    assert found[0, "shared"] == pytest.approx(after - before)
    assert found[0, "mass"] == pytest.approx(after - before)
    assert found[0, "load"] == pytest.approx(0)


def test_margins_that_became_small_are_found():
    totals = REFERENCE.copy()
    totals[FIRST.margins] = 0
    totals[FIRST.margins.start] = REFERENCE[FIRST.margins].sum()
    assert named(totals)[0, "margin"] == pytest.approx(1)


def test_window_without_tokens_has_numbers():
    assert np.isfinite(list(named(np.zeros_like(REFERENCE)).values())).all()
