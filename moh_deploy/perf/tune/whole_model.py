"""Time the whole model: as chosen, with one choice a layer, and with every layer dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moh_deploy.package import OnnxPackage
from moh_deploy.perf.timing import Measure, Ratio, TimeSamples, ratio, weighted_sum
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array

WHOLE_MODEL = "whole model"

DENSE, CHOSEN, ONE_CHOICE = "dense", "chosen", "one_choice"

ModelTimes = Sequence[Mapping[str, TimeSamples]]
"""For each set of inputs, candidate to times."""


def time_model(
    packages: Mapping[str, OnnxPackage],
    feeds: Sequence[Mapping[str, Array]],
    *,
    measure: Measure,
    variant: Variant,
) -> list[dict[str, TimeSamples]]:
    """Return for each set of inputs the times of the packages."""
    runners = {name: open_runner(package, variant) for name, package in packages.items()}
    return [
        # All candidates are open at once and take turns, so that what disturbs the machine disturbs
        # all.
        measure(WHOLE_MODEL, {name: runner.bound(fed) for name, runner in runners.items()})
        for fed in feeds
    ]


def chosen_over_dense(times: ModelTimes, weights: Sequence[float]) -> Ratio:
    """Return the chosen package's time over the dense one's, all sets of inputs together."""
    # The total time of a mix of inputs, each as often as it occurs: long ones decide more.
    chosen, dense = (
        weighted_sum([time[which] for time in times], weights) for which in (CHOSEN, DENSE)
    )
    return ratio(chosen, dense)


def chosen_over(times: Mapping[str, TimeSamples]) -> dict[str, Ratio]:
    """Return each other candidate on one set of inputs to the chosen one's time over its."""
    return {name: ratio(times[CHOSEN], ms) for name, ms in times.items() if name != CHOSEN}


def slower_than_dense(times: ModelTimes, which: str = CHOSEN) -> list[int]:
    """Return the numbers of the sets of inputs on which a candidate is slower beyond noise."""
    return [i for i, time in enumerate(times) if ratio(time[which], time[DENSE]).is_slower]


def ranges_pay(times: ModelTimes) -> bool:
    """Tell whether one choice a layer is slower: than choices by size, or than dense, anywhere."""
    # Ranges cost Ifs, and memory for weights that are packed twice: they have to pay somewhere.
    faster = [time for time in times if ratio(time[CHOSEN], time[ONE_CHOICE]).is_faster]
    return bool(faster) or bool(slower_than_dense(times, ONE_CHOICE))
