import numpy as np
import pytest

from moh_deploy.validate.accuracy.choose import Perplexity, TopK
from moh_deploy.validate.accuracy.judge import Setting, judge
from moh_deploy.validate.accuracy.metric_parity import ACCURACY_RULES, AccuracyRule, MetricParity
from moh_deploy.validate.accuracy.task import PairedScores, UserMetric

TOP_1 = TopK(1, "y")
RULE = ACCURACY_RULES["top-1"]


def setting(rule: AccuracyRule = RULE) -> Setting:
    return Setting("the original", rule, lambda number: f"val.npz[{number}]")


def paired(reference: np.ndarray, package: np.ndarray, weights: np.ndarray | None = None):
    numbers = np.arange(len(reference))
    weights = np.ones(len(reference)) if weights is None else weights
    classes = numbers % 10
    return PairedScores(
        reference.astype(float), package.astype(float), weights, numbers, classes, classes, classes
    )


def top_1(count: int, *, lost: int = 0, won: int = 0, rule: AccuracyRule = RULE) -> MetricParity:
    """Judge samples of which the reference gets those right that the package alone does not."""
    reference, package = np.ones(count), np.ones(count)
    package[:lost] = 0
    reference[lost : lost + won] = 0
    return judge(TOP_1, paired(reference, package), setting(rule))


def test_small_loss_on_many_samples_passes():
    found = top_1(10_000, lost=30, won=20)
    assert (found.verdict, found.reason) == ("passed", None)
    assert (found.worse, found.improved) == (30, 20)
    assert found.difference == pytest.approx(-0.001)
    low, high = found.interval or (0, 0)
    assert -0.0030 < low < -0.001 < high < 0.0010


def test_proven_loss_fails_and_says_how_much():
    found = top_1(1000, lost=50)
    assert found.verdict == "failed"
    assert "top-1 fell from 100.00 % to 95.00 % on 1000 samples: the 95 % interval" in str(
        found.reason
    )
    assert "1.00 points may be lost (1 % of the reference" in str(found.reason)
    assert found.p_value == pytest.approx(2.0**-49)


def test_few_samples_cannot_tell_even_where_nothing_changed():
    found = top_1(100)
    assert found.verdict == "cannot tell"
    assert "from 100 samples it cannot be told" in str(found.reason)
    assert top_1(8).verdict == "cannot tell"
    assert "8 samples are too few to tell, at least 30 are needed" in str(top_1(8).reason)


def test_advice_on_samples_is_of_the_right_size():
    enough = int(str(top_1(100).reason).split("Some ")[1].split(" ")[0])
    assert top_1(enough).verdict == "passed"
    assert top_1(enough * 3 // 4).verdict == "cannot tell"
    assert top_1(1000, won=50).verdict == "passed"  # a gain is no loss


def test_share_of_a_negative_metric_is_of_its_size():
    metric = UserMetric("mine:log_likelihood", "higher", lambda outputs, labels: labels)
    scores = -1 - np.random.default_rng(0).random(1000)
    assert judge(metric, paired(scores, scores * 1.001), setting()).verdict == "passed"
    assert judge(metric, paired(scores, scores * 1.02), setting()).verdict == "failed"


def test_rule_of_the_policy_decides():
    strict = AccuracyRule(0.001, 0.01, 30, "medical")
    assert top_1(2000, lost=2).verdict == "passed"
    assert top_1(2000, lost=2, rule=strict).verdict == "cannot tell"
    assert "0.10 points may be lost (medical)" in str(top_1(2000, lost=2, rule=strict).reason)


def test_lower_is_better_where_it_is():
    draw = np.random.default_rng(0)
    weights = draw.integers(5, 50, 100).astype(float)
    losses = weights * draw.gamma(9, 0.3, 100)
    metric = Perplexity("y")
    better = judge(metric, paired(losses, losses * 0.98, weights), setting())
    worse = judge(metric, paired(losses, losses * 1.02, weights), setting())
    assert (better.verdict, worse.verdict) == ("passed", "failed")
    assert (better.improved, better.worse, worse.improved, worse.worse) == (100, 0, 0, 100)
    assert worse.p_value is None
    assert worse.difference > 0
    assert "perplexity rose from" in str(worse.reason)
    assert worse.changed[0].package_score > worse.changed[0].reference_score


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["package", "reference"])
def test_sample_without_a_score_fails(side: str, value: float):
    scores = {"reference": np.ones(500), "package": np.ones(500)}
    scores[side][[17, 40]] = value
    found = judge(TOP_1, paired(**scores), setting())
    assert found.verdict == "failed"
    said = f"there is no finite top-1 in the {side} for 2 of 500 samples, the first is sample 17"
    assert said in str(found.reason)
    assert found.interval is None


def test_samples_that_changed_are_listed_the_lost_first():
    found = top_1(300, lost=3, won=20)
    assert len(found.changed) == 10
    assert [sample.sample for sample in found.changed[:4]] == [0, 1, 2, 3]
    assert found.changed[0].file == "val.npz[0]"
    assert (found.changed[0].reference_score, found.changed[0].package_score) == (1, 0)
    assert (found.changed[3].reference_score, found.changed[3].package_score) == (0, 1)


def test_changes_by_rounding_are_not_listed():
    losses = np.linspace(1, 2, 50)
    package = losses * (1 + 1e-6)
    package[7] *= 1.01
    found = judge(Perplexity("y"), paired(losses, package), setting())
    assert [sample.sample for sample in found.changed] == [7]
    assert found.worse == 50
    # Nothing of a zero may be lost, and that is never passed.
    assert judge(TOP_1, paired(np.zeros(500), np.zeros(500)), setting()).verdict == "cannot tell"
