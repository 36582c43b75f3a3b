"""How often intervals hold what they should: `python -m tests.validate.accuracy.coverage`.

Not a test, since it takes minutes. docs/adr/0018 has what it printed.
"""

from collections.abc import Callable

import numpy as np

from moh_deploy.validate.accuracy.bootstrap import paired_bootstrap
from moh_deploy.validate.accuracy.judge import ONE_LOST_ONE_WON
from moh_deploy.validate.reference.differences import Float64Array

DRAWS, RESAMPLES = 1500, 1000
SIZES = (20, 50, 100, 360, 2000)
SHARES = ((0.001, 0.001), (0.01, 0.01), (0.02, 0.005), (0.05, 0.05), (0.03, 0.0))  # lost, won

Draw = Callable[[np.random.Generator, int], Float64Array]


def main() -> None:
    for count in SIZES:
        for lost, won in SHARES:
            plain, smoothed = (
                covered(right_or_wrong(lost, won), count, won - lost, share_gained, added)
                for added in (False, True)
            )
            print(f"N {count}, lost {lost:.1%}, won {won:.1%}: plain {plain}, added {smoothed}")
    for is_skewed in (False, True):
        draw = sequences(is_skewed)
        many = draw(np.random.default_rng(1), 4_000_000)
        truth = float(more_perplexity(many.sum(axis=0)[None])[0])
        for count in (8, 15, 30, 100, 400):
            found = covered(draw, count, truth, more_perplexity, False)
            print(f"perplexity, skewed {is_skewed}, N {count}: {found}")


def covered(
    draw: Draw,
    count: int,
    truth: float,
    statistic: Callable[[Float64Array], Float64Array],
    smoothed: bool,
) -> str:
    """Return how often the true value is in the interval."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(DRAWS):
        rows = draw(rng, count)
        rows = np.concatenate([rows, ONE_LOST_ONE_WON]) if smoothed else rows
        low, high = paired_bootstrap(rows, statistic, resamples=RESAMPLES, seed=seed)
        hits += low - 1e-12 <= truth <= high + 1e-12
    return f"{hits / DRAWS:.1%}"


def right_or_wrong(lost: float, won: float) -> Draw:
    """Return what draws samples with these chances; all others are right on both sides."""

    def draw(rng: np.random.Generator, count: int) -> Float64Array:
        kind = rng.random(count)
        reference = (kind >= won).astype(np.float64)
        package = ((kind < won) | (kind >= won + lost)).astype(np.float64)
        return np.stack([np.ones(count), reference, package], axis=1)

    return draw


def sequences(is_skewed: bool) -> Draw:
    """Return what draws sequences of 5 to 199 tokens whose losses rise by 0.01 in the mean."""

    def draw(rng: np.random.Generator, count: int) -> Float64Array:
        tokens, loss = rng.integers(5, 200, count), rng.gamma(9, 0.33, count)
        rise = rng.gamma(0.5, 0.04, count) - 0.02 if is_skewed else rng.normal(0, 0.03, count)
        noise = rng.normal(0, 0.05, count) / np.sqrt(tokens)
        return np.stack([tokens, tokens * loss, tokens * (loss + 0.01 + rise + noise)], axis=1)

    return draw


def share_gained(sums: Float64Array) -> Float64Array:
    """Return by how much more are right."""
    return (sums[:, 2] - sums[:, 1]) / sums[:, 0]


def more_perplexity(sums: Float64Array) -> Float64Array:
    """Return by how much perplexity is higher."""
    return np.exp(sums[:, 2] / sums[:, 0]) - np.exp(sums[:, 1] / sums[:, 0])


if __name__ == "__main__":
    main()
