import pytest

from moh_deploy.perf.tune.job import contenders, decide

# A tenth up or down, as no two rounds are alike.
NOISE = (0.0, 0.05, -0.05, 0.1, -0.1, 0.02, -0.02)


def samples(**ms: float) -> dict[str, tuple[float, ...]]:
    """Contestants with noise of their own each."""
    return {
        name: tuple(item * (1 + NOISE[(index + shift) % 7]) for index in range(7))
        for shift, (name, item) in enumerate(ms.items())
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
    assert decide(samples(**ms), {}) == choice


def test_prediction_decides_a_tie_and_nothing_else():
    tie = samples(dense=1.0, sparse=0.99, projected=2.0)
    assert contenders(tie) == ("dense", "sparse")
    assert decide(tie, {"dense": 2.0, "sparse": 1.0, "projected": 0.1}) == "sparse"
    assert decide(tie, {"dense": 1.0, "sparse": 2.0, "projected": 0.1}) == "dense"
    clear = samples(dense=1.0, sparse=2.0)
    assert decide(clear, {"dense": 2.0, "sparse": 1.0}) == "dense"


def test_noise_that_hides_everything_leaves_it_to_the_prediction():
    noisy = {
        "dense": (2.0, 22.0, 1.0, 30.0, 2.0, 9.0, 3.0),
        "sparse": (9.0, 3.0, 1.0, 2.0, 30.0, 1.0, 4.0),
    }
    assert contenders(noisy) == ("dense", "sparse")
    assert decide(noisy, {"dense": 2.0, "sparse": 1.0}) == "sparse"
    assert decide(noisy, {}) == "dense"
