from __future__ import annotations

import math

import pytest

from moh_deploy.validate.bisection.checkpoint import checkpoints, wrong_values
from moh_deploy.validate.bisection.judge import Recorded


def recorded(**shares: float) -> list[Recorded]:
    """Values with errors as shares of what is allowed."""
    return [
        Recorded(name, name, share, 1.0, "wrong" if share > 1 else None)
        for name, share in shares.items()
    ]


def value(name: str, drift: float | None, *, wrong: bool = False) -> Recorded:
    return Recorded(name, name, drift or 0.0, 1.0, "wrong" if wrong else None, drift)


def exact(recorded: list[Recorded], precision: str = "float32", **reactions: float) -> set[str]:
    return {one.what for one in checkpoints(recorded, reactions, precision) if one.exact}


def test_error_of_rounding_is_exact_by_how_much_the_value_reacts():
    """The same error: rounding of a value that reacts much, a fault of one that reacts little."""
    values = [value("much", 1e-6), value("little", 1e-6), value("y", 1.0, wrong=True)]
    assert exact(values, much=10.0, little=0.01, y=10.0) == {"much"}


def test_value_that_does_not_react_is_never_exact():
    """Gates of 0 and 1, say. Nor is one that reacts without bounds, or was not asked."""
    values = [value("gates", 0.0), value("y", 1.0, wrong=True)]
    for reaction in (0.0, math.nan, math.inf):
        assert exact(values, gates=reaction, y=10.0) == set()
    assert exact(values, y=10.0) == set()
    assert exact([value("integers", None), value("y", 1.0, wrong=True)], integers=1.0) == set()


@pytest.mark.parametrize(("fault", "proves"), [(1e-4, True), (1e-6, False)])
def test_error_has_to_be_far_below_what_the_fault_would_make(fault: float, proves: bool):
    values = [value("gates", 2e-7), value("y", fault, wrong=True)]
    assert exact(values, gates=1.0, y=1.0) == ({"gates"} if proves else set())


def test_fault_whose_size_is_not_known_leaves_the_bound_of_rounding():
    """Every token chooses other heads: nothing is left whose error could be taken."""
    values = [value("flipped", None, wrong=True), value("y", 2e-7), value("z", 2e-5)]
    assert exact(values, flipped=1.0, y=1.0, z=1.0) == {"y"}
    values[0] = value("flipped", math.nan, wrong=True)
    assert exact(values, flipped=1.0, y=1.0, z=1.0) == {"y"}


def test_bound_of_rounding_is_that_of_the_precision():
    values = [value("gates", 1e-3), value("y", 1.0, wrong=True)]
    assert exact(values, "float16", gates=1.0, y=1.0) == {"gates"}
    assert exact(values, "float32", gates=1.0, y=1.0) == set()


def test_without_anything_above_its_limit_what_is_nearest_to_it_counts():
    near = wrong_values(recorded(first=0.8, second=0.01))
    assert [one.value for one in near] == ["first"]
    assert len(wrong_values(recorded(first=0.8, second=0.3))) == 2


def test_wrong_value_is_worse_than_any_right_one():
    flip = Recorded("router", "gates", 0.0, 1.0, "3 tokens choose other heads")
    assert flip.badness > Recorded("router", "gates", 0.9, 1.0, None).badness
    assert math.isinf(Recorded("output", "y", math.nan, 1.0, "NaN").share)
