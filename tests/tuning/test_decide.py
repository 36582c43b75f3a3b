from __future__ import annotations

import pytest

from moh_deploy.tuning.decide import fastest

# A tenth up or down, as no two rounds are alike.
NOISE = (0.0, 0.05, -0.05, 0.1, -0.1, 0.02, -0.02)


def samples(**ms: float) -> dict[str, tuple[float, ...]]:
    """Contestants with noise of their own each."""
    return {
        name: tuple(one * (1 + NOISE[(index + shift) % 7]) for index in range(7))
        for shift, (name, one) in enumerate(ms.items())
    }


@pytest.mark.parametrize(
    ("ms", "choice"),
    [
        ({"dense": 1.0, "sparse": 0.5}, "sparse"),
        ({"dense": 0.5, "sparse": 1.0}, "dense"),
        ({"dense": 1.0, "sparse": 0.5, "projected": 0.2}, "projected"),
        ({"dense": 1.0, "sparse": 0.2, "projected": 0.5}, "sparse"),
        ({"dense": 0.2, "sparse": 0.5, "projected": 1.0}, "dense"),
        # Not clearly faster than something plainer.
        ({"dense": 1.0, "sparse": 0.99}, "dense"),
        ({"dense": 1.0, "sparse": 0.5, "projected": 0.495}, "sparse"),
        # Sparse attention alone gains nothing, the projections do.
        ({"dense": 1.0, "sparse": 0.99, "projected": 0.5}, "projected"),
    ],
)
def test_choice_is_the_fastest_and_the_plainer_one_wins_a_tie(ms: dict[str, float], choice: str):
    assert fastest(samples(**ms)) == choice
