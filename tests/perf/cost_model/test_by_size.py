from __future__ import annotations

import pytest

from moh_deploy.package import LayerInfo, choice_text, current_choice
from moh_deploy.perf.cost_model.first_choices import SWITCH_MS, by_size, dense_at
from moh_deploy.perf.tune.job import fastest_there
from tests.projected_package import PROJECTED_LAYER


def sizes(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"batch": batch, "seq": seq} for batch, seq in pairs]


def ranged(pairs: list[tuple[int, int]], *choices: str) -> str | None:
    layer = by_size(PROJECTED_LAYER, sizes(*pairs), choices)
    if layer is None:
        return None
    found = [current_choice(layer, one) for one in sizes(*pairs)]
    assert found == list(choices), "every measured run has its choice"
    return choice_text(layer)


def test_boundary_is_the_geometric_mean_of_the_sizes_beside_it():
    text = "projected if seq<=22, else sparse"
    assert ranged([(1, 512), (1, 1)], "sparse", "projected") == text
    assert ranged([(1, 512), (1, 1), (1, 1)], "sparse", "projected", "projected") == text


def test_neighbours_have_a_boundary_between_them():
    assert ranged([(1, 7), (1, 8)], "dense", "sparse") == "dense if seq<=7, else sparse"
    assert ranged([(1, 0), (1, 1)], "dense", "sparse") == "dense if seq<=0, else sparse"


def test_equal_neighbours_are_one_range():
    pairs = [(1, 1), (1, 4), (1, 64), (1, 256), (1, 1024)]
    choices = ["projected", "projected", "sparse", "sparse", "dense"]
    text = "projected if seq<=16, else sparse if seq<=512, else dense"
    assert ranged(pairs, *choices) == text


def test_what_is_compared_is_what_tells_the_runs_apart():
    assert ranged([(1, 9), (32, 9)], "dense", "sparse") == "dense if batch<=5, else sparse"
    # Neither batch nor seq alone: each has one value with two choices.
    pairs = [(1, 1), (1, 64), (8, 1)]
    assert ranged(pairs, "dense", "sparse", "dense") == "dense if seq<=8, else sparse"
    assert ranged([*pairs, (64, 1)], "dense", "sparse", "dense", "sparse") == (
        "dense if batch*seq<=22, else sparse"
    )


def test_fewer_ranges_are_better_than_a_single_dimension():
    pairs = [(1, 16), (2, 4), (3, 1), (4, 32)]
    text = "dense if seq<=8, else sparse"
    assert ranged(pairs, "sparse", "dense", "dense", "sparse") == text


def test_one_choice_needs_no_range():
    assert ranged([(1, 1), (1, 9)], "dense", "dense") == "dense"
    assert ranged([(1, 9)], "sparse") == "sparse"
    assert ranged([(1, 9), (1, 9)], "sparse", "sparse") == "sparse"


def test_runs_of_one_size_cannot_differ():
    """As where one has more heads open."""
    assert ranged([(1, 9), (1, 9)], "dense", "sparse") is None
    assert by_size(PROJECTED_LAYER, [{}, {}], ["dense", "sparse"]) is None
    assert by_size(PROJECTED_LAYER, [{}, {}], ["dense", "dense"]) is not None


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        ({"dense": 1.0, "sparse": 2.0}, "dense"),
        ({"dense": 2.0, "sparse": 1.0}, "sparse"),
        ({"dense": 1.0, "sparse": 1.0}, "sparse"),
        # A gain that an If would eat up.
        ({"dense": 0.02, "sparse": 0.02 + SWITCH_MS / 2}, "sparse"),
    ],
)
def test_other_choice_has_to_be_clearly_faster(ms: dict[str, float], expected: str):
    samples = {choice: (one,) * 7 for choice, one in ms.items()}
    assert fastest_there(samples, {}, otherwise="sparse") == expected


def test_gain_within_noise_is_none():
    samples = {"dense": (1.0, 2.0) * 10, "sparse": (2.0, 1.0) * 10}
    assert fastest_there(samples, {"dense": 1.0, "sparse": 2.0}, otherwise="sparse") == "sparse"


def test_layer_may_be_made_dense_at_some_sizes():
    at = sizes((1, 1), (1, 64), (1, 1024))
    layer: LayerInfo | None = by_size(PROJECTED_LAYER, at, ["projected", "sparse", "sparse"])
    assert layer is not None
    made = dense_at(layer, at, [2])
    assert made is not None
    assert choice_text(made) == "projected if seq<=8, else sparse if seq<=256, else dense"
    for slower, text in (([0], "dense if seq<=8, else sparse"), ([0, 1, 2], "dense")):
        made = dense_at(layer, at, slower)
        assert made is not None
        assert choice_text(made) == text
