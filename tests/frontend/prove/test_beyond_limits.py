from __future__ import annotations

from collections.abc import Callable

import pytest

from moh_deploy.frontend.limits import Ranges
from moh_deploy.frontend.prove.size_runs import TriedLimits, try_limits


def tried(
    limits: tuple[int, int | None],
    agrees: Callable[[int], bool],
    retraced: Ranges | None = None,
) -> tuple[TriedLimits, list[int]]:
    """What is left of the limits of `n`, and the sizes that were tried."""
    sizes: list[int] = []

    def in_the_way(name: str, size: int) -> str | None:
        sizes.append(size)
        return None if agrees(size) else f"{name}={size} differs"

    return try_limits({"n": limits}, in_the_way, lambda name, size: retraced), sizes


def test_limit_that_is_none_of_the_models_is_lifted():
    found, sizes = tried((9, None), lambda size: True)
    assert found == TriedLimits({}, {})
    assert sizes == [8, 6, 2, 1]


@pytest.mark.parametrize("least", range(1, 21))
def test_smallest_size_that_agrees_is_found(least: int):
    found, sizes = tried((20, None), lambda size: size >= least)
    assert found.ranges.get("n", (1, None)) == (least, None)
    assert len(sizes) <= 12
    assert found.reasons == ({} if least == 1 else {"n": f"n={least - 1} differs"})


def test_largest_size_of_the_model_stays():
    found, sizes = tried((1, 64), lambda size: size <= 64)
    assert found == TriedLimits({"n": (1, 64)}, {"n": "n=65 differs"})
    assert sizes == [65]
    found, sizes = tried((1, 64), lambda size: size < 200)
    assert found == TriedLimits({"n": (1, 199)}, {"n": "n=200 differs"})
    assert len(sizes) < 30


def test_both_limits_are_tried():
    found, _ = tried((5, 64), lambda size: 3 <= size <= 64)
    assert found == TriedLimits({"n": (3, 64)}, {"n": "n=2 differs; n=65 differs"})


@pytest.mark.parametrize(
    ("retraced", "expected"),
    [
        ({"n": (65, None)}, None),
        ({}, None),
        ({"n": (65, 1000)}, 1000),
        ({"n": (66, None)}, None),
        ({"n": (100, None)}, 256),
        (None, 256),
    ],
)
def test_larger_sizes_are_as_many_as_another_trace_takes(
    retraced: Ranges | None, expected: int | None
):
    found, _ = tried((1, 64), lambda size: True, retraced)
    assert found.ranges.get("n", (1, None)) == (1, expected)
    assert bool(found.reasons) == (expected == 256)
