import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.mixed_precision import MinimalSet, _reason
from moh_deploy.validate.bisection.places import NodePlace


def search(needed: Iterable[int], most: int = 1000) -> MinimalSet[int]:
    return MinimalSet(lambda items: set(needed) <= set(items), most)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_needed_items_are_found_and_no_others(drawn: tuple[int, set[int]]):
    count, needed = drawn
    found = search(needed).find(range(count))
    assert (set(found.items), found.smallest) == (needed, True)


@pytest.mark.parametrize("needed", [{0}, {63}, {3, 40}])
def test_few_tests_find_few_items(needed: set[int]):
    one = search(needed)
    one.find(range(64))
    assert one.asked <= len(needed) * (2 * math.log2(64) + 3)


def test_likely_item_in_front_takes_no_search():
    one = search({0})
    one.find(range(1000))
    assert one.asked == 2  # without any, and with the first


def test_of_two_sets_that_do_the_one_in_front_is_found():
    one = MinimalSet[int](lambda items: bool({2, 9} & set(items)), 1000)
    assert one.find(range(12)).items == (2,)


def test_set_still_passes_when_tests_run_out():
    needed = {3, 30, 50, 60}
    for most in range(1, 30):
        one = search(needed, most)
        found = one.find(range(64))
        assert one.asked <= most
        assert needed <= set(found.items)
        assert found.smallest == (set(found.items) == needed and one.asked < most)


def test_items_that_only_hurt_together_are_thinned():
    """Without 5 it passes, and with it only if 6 is there too: more is not always better."""
    one = MinimalSet[int](lambda s: 1 in s and (5 not in s or 6 in s), 1000)
    assert one.thin((1, 5, 6)).items == (1,)


@pytest.mark.parametrize(
    ("before", "behind", "size", "finite", "reason"),
    [
        (0.0, 0.1, 7e4, True, "its numbers reach 7e+04, and float16 ends at 6.55e+04"),
        (0.0, math.inf, 9.0, False, "its result is not finite in float16"),
        (0.01, 0.5, 9.0, True, "error of 0.01 before it, 0.5 behind it"),
        (0.0, 1e-6, 5000.0, True, "its numbers reach 5e+03, where float16 has steps of 4"),
    ],
)
def test_reason_is_what_lower_precision_does(
    before: float, behind: float, size: float, finite: bool, reason: str
):
    error = NodeError(NodePlace("up", "MatMul", "blocks.0", "x"), before, behind, size, finite)
    assert _reason(error, "float16", 65504.0) == reason
    assert _reason(None, "int8", math.inf) == "with it in int8, the package fails"
