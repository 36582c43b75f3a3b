"""Break-even in size, of times whose truth is known, and of gains given by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.decision.decide import SizedTimes
from moh_deploy.decision.size_break_even import (
    SizeBreakEven,
    SizedGain,
    crossings,
    size_break_evens,
)
from tests.decision.simulated import REFERENCE, times
from tests.nightly import nightly


def timed(
    rng: np.random.Generator, gains: dict[int, float], *, seq: int = 5, rounds: int = 200
) -> list[SizedTimes]:
    """Return times at batch sizes; the alternative saves so much of the reference's at each."""
    return [
        replace(times(rng, [gain], rounds=rounds), sizes={"batch": batch, "seq": seq})
        for batch, gain in gains.items()
    ]


def found(runs: Sequence[SizedTimes]) -> tuple[SizeBreakEven, ...]:
    return size_break_evens(runs, [("0", REFERENCE)], quantile=0.5, confidence=0.95)


def test_size_from_which_on_an_alternative_pays_lies_between_those_that_were_timed():
    (one,) = found(timed(np.random.default_rng(0), {1: -0.2, 16: 0.2}))
    (crossing,) = one.crossings
    # ln 1.2 of ln 1.2 - ln 0.8 along log2 of 1 to 16.
    truth = 16 ** (math.log(1.2) / math.log(1.2 / 0.8))
    assert crossing.begins
    assert crossing.size == pytest.approx(truth, rel=0.2)
    assert crossing.low is not None
    assert crossing.high is not None
    assert 1 < crossing.low < truth < crossing.high < 16
    assert one.outcome.startswith(f"faster from batch {crossing.size:.2g} on (")
    assert (one.dim, one.others) == ("batch", {"seq": 5})


@nightly
def test_interval_holds_the_true_size_as_often_as_it_says():
    rng, truth = np.random.default_rng(0), 16 ** (math.log(1.06) / math.log(1.06 / 0.94))
    inside = 0
    for _ in range(1000):
        (one,) = found(timed(rng, {1: -0.06, 16: 0.06}, rounds=100))
        inside += any(
            (crossing.low or 1) <= truth <= (crossing.high or 16) for crossing in one.crossings
        )
    assert inside >= 940


def test_no_crossing_is_said_and_so_is_where_it_is_not_told():
    rng = np.random.default_rng(0)
    (one,) = found(timed(rng, {1: 0.1, 8: 0.2, 32: 0.3}))
    assert (one.crossings, one.outcome) == (
        (),
        "faster throughout: no crossing between batch 1 and 32",
    )
    gains = (SizedGain(1, -0.2, -0.3, -0.1), SizedGain(8, -0.02, -0.1, 0.05))
    close = SizeBreakEven("0", REFERENCE, "batch", {}, gains, tuple(crossings(gains)))
    assert close.outcome == "slower throughout: no crossing between batch 1 and 8, not told at 8"


def test_crossing_that_may_be_beyond_what_was_timed_has_no_end_there():
    gains = (
        SizedGain(1, 0.2, 0.1, 0.3),
        SizedGain(4, 0.05, -0.05, 0.15),
        SizedGain(8, -0.02, -0.12, 0.08),
    )
    (one,) = crossings(gains)
    assert (one.begins, one.high) == (False, None)
    assert 4 < one.size < 8
    assert one.low is not None
    assert 1 < one.low < 4
    said = SizeBreakEven("0", REFERENCE, "batch", {}, gains, (one,)).outcome
    assert said.startswith("slower from batch ")
    assert said.endswith(" to beyond all timed)")


def test_alternative_that_pays_in_the_middle_begins_and_stops():
    gains = [
        SizedGain(size, g, g - 0.01, g + 0.01) for size, g in ((1, -0.1), (4, 0.1), (16, -0.1))
    ]
    begins, stops = crossings(gains)
    assert (begins.begins, stops.begins) == (True, False)
    assert begins.size == pytest.approx(16 / stops.size, rel=1e-6)


def test_each_line_of_sizes_is_its_own_and_single_sizes_tell_nothing():
    rng = np.random.default_rng(0)
    short = timed(rng, {1: -0.2, 8: 0.2}, seq=5)
    long = timed(rng, {1: 0.2, 8: 0.3}, seq=50)
    batch_short, batch_long, *along_seq = found([*short, *long])
    assert (batch_short.others, batch_long.others) == ({"seq": 5}, {"seq": 50})
    assert [(item.dim, item.others) for item in along_seq] == [
        ("seq", {"batch": 1}),
        ("seq", {"batch": 8}),
    ]
    assert along_seq[0].crossings[0].begins
    assert found(short[:1]) == ()
    assert found(timed(rng, {1: 0.1, 8: 0.1}, rounds=9)) == ()
