from types import ModuleType

import numpy as np
import pytest

from moh_deploy.validate.accuracy.bootstrap import mcnemar, paired_bootstrap


@pytest.fixture(scope="module")
def stats() -> ModuleType:
    """Imported by the process that needs it only, and not by all that collect tests."""
    from scipy import stats

    return stats


@pytest.mark.parametrize(
    ("lost", "won"), [(0, 0), (1, 0), (0, 5), (3, 9), (10, 10), (40, 70), (2000, 2100)]
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, stats: ModuleType):
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


def test_interval_is_that_of_scipy(stats: ModuleType):
    draw = np.random.default_rng(3)
    reference = draw.gamma(2.0, size=80)
    package = reference + draw.normal(0.02, 0.1, size=80)
    rows = np.stack([np.ones(80), reference, package], axis=1)
    ours = paired_bootstrap(rows, lambda sums: (sums[:, 2] - sums[:, 1]) / sums[:, 0])
    theirs = stats.bootstrap(
        (package, reference),
        lambda p, r, axis=-1: np.mean(p - r, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1.5e-3)


def test_equal_samples_are_drawn_as_often_as_others(stats: ModuleType):
    # Nine of ten rows are alike: their share has the spread of a binomial, not of one in two.
    rows = np.array([[1.0, 0.0]] * 90 + [[1.0, 1.0]] * 10)
    low, high = paired_bootstrap(rows, lambda sums: sums[:, 1] / sums[:, 0])
    assert (low, high) == pytest.approx(stats.binom(100, 0.1).ppf([0.025, 0.975]) / 100, abs=0.011)


def test_interval_is_the_same_each_time_and_of_its_seed():
    rows = np.random.default_rng(1).random((30, 2)) + 1
    intervals = [paired_bootstrap(rows, lambda s: s[:, 1] / s[:, 0], seed=i) for i in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
