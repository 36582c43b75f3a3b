"""How far routing is from the reference, in numbers."""

import numpy as np
import pytest

from moh_deploy.serving.drift.distances import by_layer, distances, limits, statistics_of
from moh_deploy.serving.telemetry.routing import Counts
from tests.nightly import nightly
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


# Limits keep the rate of false alarms that they were calibrated to.


WINDOW, RATE = 64, 0.01
TRAFFIC = requests(20_000, seed=1)


def false_alarms(reference: Counts, far: Counts, windows: int, seed: int = 3) -> int:
    """Count windows of the same traffic that alarm."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(TRAFFIC), size=(windows, WINDOW))
    totals = TRAFFIC[chosen].sum(axis=1)
    return int((distances(LAYOUT, totals, reference.sum(axis=0)) > far).any(axis=1).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unchanged_traffic_alarms_no_more_often_than_stated(seed: int):
    reference = requests(400, seed=10 + seed)
    far = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=seed)
    # 20 are expected of 2000 at the rate itself; 33 have a probability of 0.3 %.
    assert false_alarms(reference, far, 2000) <= 33


@nightly
def test_of_many_references_nearly_all_keep_the_rate():
    kept = 0
    for seed in range(40):
        reference = requests(400, seed=100 + seed)
        far = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=seed)
        kept += false_alarms(reference, far, 4000) <= 4000 * RATE
    assert kept >= 36


def test_requests_that_are_all_alike_leave_room_for_what_is_rounded():
    far = limits(LAYOUT, np.repeat(TRAFFIC[:1], 200, axis=0), WINDOW, rate=RATE, seed=0)
    assert (far > 1e-6).all()


def test_larger_windows_have_narrower_limits():
    reference = requests(400, seed=10)
    narrow = limits(LAYOUT, reference, 4 * WINDOW, rate=RATE, seed=0)
    wide = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=0)
    assert (narrow < wide).all()


def test_equal_seeds_give_equal_limits():
    reference = requests(200, seed=10)
    found = [limits(LAYOUT, reference, WINDOW, rate=RATE, seed=4) for _ in range(2)]
    np.testing.assert_array_equal(*found)
