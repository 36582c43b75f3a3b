"""Verdicts on data whose truth is known: how often are they wrong, how often are they found?

What is stated: no alternative that is not worth it is called a win more often than the level, which
is half of what the confidence leaves; over all alternatives, and over all looks.
"""

import math
from collections import Counter

import numpy as np
import pytest

from moh_deploy.decision.decide import (
    AlternativeEvidence,
    decide_alternatives,
    level_of_look,
    shown_by_holm,
    would_do,
)
from moh_deploy.decision.promise import Promise, SampleScores, quality_promise
from moh_deploy.validate.accuracy.choose import Perplexity, TopK
from tests.decision.simulated import REFERENCE, evidence, plan, scores, times
from tests.nightly import nightly

LEVEL = 0.025
TIME_ALONE = {"quality": (), "inputs": (), "labels": None}


def at_most(rate: float, repetitions: int) -> float:
    """Return the count that a rate exceeds in fewer than one of 10,000 such simulations."""
    return repetitions * rate + 3.9 * (repetitions * rate * (1 - rate)) ** 0.5


def simulated(
    repetitions: int, losses: list[float], gains: list[float], *, quality: bool = True
) -> Counter[str]:
    """Return how often alternative 0 got each verdict, and how often any alternative got one."""
    found: Counter[str] = Counter()
    asked = plan(len(losses), **({} if quality else TIME_ALONE))
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        shown = (
            evidence(rng, losses, gains)
            if quality
            else AlternativeEvidence([], [times(rng, gains)])
        )
        decided = decide_alternatives(asked, shown)
        found[decided[0].verdict] += 1
        found.update({f"any {item}" for item in (each.verdict for each in decided)})
    return found


REPETITIONS = [8, pytest.param(1000, marks=nightly)]


@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize(("loss", "gain"), [(0.0, 0.1), (0.01, 0.3)], ids=["time", "quality"])
def test_alternative_that_is_just_not_worth_it_wins_no_more_often_than_stated(
    repetitions: int, loss: float, gain: float
):
    found = simulated(repetitions, [loss], [gain])
    assert found["win"] <= at_most(LEVEL, repetitions)
    # The same truth is just not a loss.
    assert found["loss"] <= at_most(LEVEL, repetitions)


@nightly
def test_none_of_four_alternatives_wins_more_often_than_one_would():
    # Of time alone, which has no draws to wait for.
    found = simulated(1000, [0.0] * 4, [0.1] * 4, quality=False)
    assert found["any win"] <= at_most(LEVEL, 1000)
    assert found["any loss"] <= at_most(LEVEL, 1000)


@pytest.mark.parametrize("repetitions", REPETITIONS)
def test_known_difference_is_found(repetitions: int):
    # Of 0.15 against 0.1, with a standard error of 0.4 %; and no loss, with one of 0.22 points.
    assert simulated(repetitions, [0.0], [0.15])["win"] >= 0.95 * repetitions
    assert simulated(repetitions, [0.0], [0.0])["loss"] >= 0.95 * repetitions
    assert simulated(repetitions, [0.03], [0.3])["loss"] >= 0.95 * repetitions


@nightly
def test_number_of_samples_that_would_tell_does_so_in_eight_of_ten_cases():
    asked = plan(1, latency=None)
    rng = np.random.default_rng(0)
    needed = []
    for _ in range(200):
        found = AlternativeEvidence([scores(rng, [0.005], samples=1000)], [])
        (promise,) = decide_alternatives(asked, found)[0].promises
        # What was measured is true, on the whole: those of about that loss.
        if abs(promise.estimate - 0.005) < 0.001 and (enough := promise.enough(LEVEL)):
            needed.append(enough)
    count = int(np.median(needed))
    told = sum(
        decide_alternatives(asked, AlternativeEvidence([scores(rng, [0.005], samples=count)], []))[
            0
        ].verdict
        == "win"
        for _ in range(300)
    )
    assert 0.65 <= told / 300 <= 0.92


@nightly
def test_looks_together_win_no_more_often_than_stated():
    asked, wins = plan(1, looks=3, **TIME_ALONE), 0
    for seed in range(1000):
        whole = times(np.random.default_rng(seed), [0.1], rounds=600)
        told = {}
        for look in (1, 2, 3):
            part = {name: item[: 200 * look] for name, item in whole.wall_ms.items()}
            shown = type(whole)(whole.sizes, whole.samples, part)
            (decided,) = decide_alternatives(
                asked, AlternativeEvidence([], [shown]), look=look, earlier=told
            )
            told = {"0": (decided.verdict, decided.look)}
        wins += told["0"][0] == "win"
    assert wins <= at_most(LEVEL, 1000)


def test_verdict_of_an_earlier_look_stays():
    found = evidence(np.random.default_rng(0), [0.0], [0.0])
    (decided,) = decide_alternatives(plan(looks=2), found, look=2, earlier={"0": ("win", 1)})
    assert (decided.verdict, decided.look) == ("win", 1)


def test_alternative_without_routers_would_do_only_if_it_does_as_well_as_all_with_them():
    asked, rng = plan(2), np.random.default_rng(0)
    routes = {REFERENCE: True, "0": True, "1": False}
    slow = AlternativeEvidence([scores(rng, [0.0, 0.0], samples=20_000)], [times(rng, [0.02, 0.0])])
    (found,) = would_do(asked, slow, routes)
    assert (found.name, found.beside) == ("1", (REFERENCE, "0"))
    one_faster = AlternativeEvidence(slow.scores, [times(rng, [0.3, 0.0])])
    assert would_do(asked, one_faster, routes) == ()
    worse = AlternativeEvidence([scores(rng, [0.0, 0.05], samples=20_000)], slow.times)
    assert would_do(asked, worse, routes) == ()
    assert would_do(asked, slow, dict.fromkeys(routes, True)) == ()


def test_holm_stops_at_the_first_that_does_not_pass():
    p_values = {"a": 0.2, "b": 0.004, "c": 0.012, "d": 0.04}
    # 0.05/4, 0.05/3, 0.05/2: d does not pass, so a is not looked at.
    assert shown_by_holm(p_values, 0.05) == {"a": False, "b": True, "c": True, "d": False}


def test_looks_spend_the_level_and_little_at_first():
    spent = [level_of_look(LEVEL, look, 3) for look in (1, 2, 3)]
    assert sum(spent) == pytest.approx(LEVEL)
    assert spent == sorted(spent)
    assert level_of_look(LEVEL, 1, 1) == pytest.approx(LEVEL)


@pytest.mark.parametrize("looks", [15, 20])
def test_first_of_many_looks_spends_something(looks: int):
    spent = [level_of_look(LEVEL, look, looks) for look in range(1, looks + 1)]
    assert spent[0] > 0
    assert sum(spent) == pytest.approx(LEVEL)
    (found,) = decide_alternatives(
        plan(looks=looks), evidence(np.random.default_rng(0), [0.0], [0.1])
    )
    assert found.verdict == "cannot tell"


def test_look_that_draws_cannot_show_says_so():
    shown = evidence(np.random.default_rng(0), [0.0, 0.0], [0.5, 0.5])
    found = decide_alternatives(plan(2, looks=9), shown)
    assert found[0].verdict == "cannot tell"
    assert any("the next look may be wrong" in item for item in found[0].would_tell)
    assert any("draws cannot show; a later look can tell" in item for item in found[0].would_tell)
    (last,) = decide_alternatives(
        plan(confidence=0.9999), evidence(np.random.default_rng(0), [0.0], [0.5])
    )
    assert any(
        "cannot show; fewer alternatives or a lower confidence" in item for item in last.would_tell
    )


def test_number_that_would_tell_is_of_the_next_looks_level():
    found = evidence(np.random.default_rng(0), [0.005], [0.5], samples=3000)
    (decided,) = decide_alternatives(plan(looks=2), found, look=1)
    (promise, _) = decided.promises
    enough = [promise.enough(level_of_look(LEVEL, look, 2)) for look in (1, 2)]
    assert enough[0] is not None
    assert enough[1] is not None
    assert enough[0] > enough[1] > 3000
    advice = f"{promise.text}: some {enough[1]} samples would tell, there were 3000"
    assert decided.would_tell == (advice,)
    (last,) = decide_alternatives(plan(looks=2), found, look=2)
    assert last.would_tell == (advice,)


def test_data_that_the_next_look_may_judge_are_said_to_be_enough():
    found = evidence(np.random.default_rng(0), [0.0], [0.5], samples=2000)
    (decided,) = decide_alternatives(plan(looks=3), found)
    assert decided.verdict == "cannot tell"
    assert decided.would_tell[0].endswith(": 2000 samples should tell; run it again")


def test_broken_promise_is_hinted_at_its_part_of_the_level():
    (found,) = decide_alternatives(plan(looks=6), evidence(np.random.default_rng(0), [0.1], [0.3]))
    assert found.verdict == "cannot tell"
    # The next look may be wrong in 0.0103 % of cases, which draws can show, and half is too little.
    assert any("0.0052 % of cases, which 10000 draws" in item for item in found.would_tell)


# Losses of quality, sample by sample.


def promised(scores: SampleScores, may_lose: float = 0.01) -> Promise:
    return quality_promise(scores, "alternative", "reference", may_lose=may_lose, confidence=0.95)


def top_1(reference: np.ndarray, alternative: np.ndarray) -> SampleScores:
    totals = {
        "reference": reference.astype(np.float64),
        "alternative": alternative.astype(np.float64),
    }
    return SampleScores(TopK(1, "y"), np.ones(len(alternative)), totals)


def test_equal_answers_of_many_samples_are_shown_to_lose_nothing():
    right = np.arange(2000) % 10 > 0
    found = promised(top_1(right, right))
    assert (found.estimate, found.p_kept < 0.001) == (0.0, True)
    assert found.came == "90.00 % to 90.00 %: loss 0.00 points (-0.15 to 0.15 points)"


def test_equal_answers_of_few_samples_are_not():
    right = np.ones(100)
    found = promised(top_1(right, right))
    assert found.p_kept > 0.025
    enough = found.enough(0.025)
    assert enough is not None
    assert enough > 100


def test_fewer_samples_than_a_bootstrap_needs_show_nothing_kept():
    found = promised(top_1(np.ones(29), np.ones(29)), may_lose=0.5)
    assert found.p_kept == 1.0
    assert found.why_unknown.startswith("29 samples are too few")


def test_what_both_lose_cancels():
    rng = np.random.default_rng(0)
    right = rng.random(4000) < 0.5
    same, other = promised(top_1(right, right)), promised(top_1(right, rng.permutation(right)))
    assert same.standard_error < 0.1 * other.standard_error


def test_lower_is_better_of_perplexity():
    rng = np.random.default_rng(0)
    losses = 2 + rng.random(400)
    totals = {"reference": 10 * losses, "alternative": 10 * (losses + 0.1)}
    scores = SampleScores(Perplexity("y"), np.full(400, 10.0), totals)
    found = promised(scores, may_lose=0.1)
    expected = math.exp(losses.mean() + 0.1) - math.exp(losses.mean())
    assert found.estimate == pytest.approx(expected)
    assert found.p_broken < 0.025
    assert promised(scores, may_lose=3.0).p_kept < 0.025


def test_sample_without_a_score_loses_if_it_is_the_alternatives():
    broken = np.ones(100)
    broken[3] = np.nan
    found = promised(top_1(np.ones(100), broken))
    assert (found.p_kept, found.p_broken) == (1.0, 0.0)
    assert found.came == "1 of 100 samples have no finite top-1 in 'alternative'"
    other = promised(top_1(broken, np.ones(100)))
    assert (other.p_kept, other.p_broken) == (1.0, 1.0)


def test_alternative_without_a_score_changes_nothing_of_another():
    right = np.ones(100)
    broken = right.copy()
    broken[3] = np.nan
    totals = {"reference": right, "alternative": right, "half": broken}
    scores = SampleScores(TopK(1, "y"), right, totals)
    assert promised(scores) == promised(top_1(right, right))
    low, high = scores.interval("alternative", 0.95) or (1.0, 1.0)
    assert low < high
