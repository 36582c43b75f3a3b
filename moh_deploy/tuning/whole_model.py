"""Time the whole model as chosen against the same with every layer dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.npz import Array
from moh_deploy.package import OnnxPackage
from moh_deploy.tuning.timing import Measure, Ratio, Samples, ratio, weighted_sum

WHOLE_MODEL = "whole model"


def time_model(
    dense: OnnxPackage,
    chosen: OnnxPackage,
    feeds: Sequence[Mapping[str, Array]],
    *,
    measure: Measure,
    threads: int | None,
) -> list[dict[str, Samples]]:
    """Return for each set of inputs the times of the two packages."""
    packages = {"dense": dense, "chosen": chosen}
    runners = {name: open_session(package, threads=threads) for name, package in packages.items()}
    return [
        measure(WHOLE_MODEL, {name: one.bound(fed) for name, one in runners.items()})
        for fed in feeds
    ]


def chosen_over_dense(samples: Sequence[Mapping[str, Samples]], weights: Sequence[float]) -> Ratio:
    """Return the chosen package's time over the dense one's: below 1 it is faster.

    Args:
        samples: What `time_model` returned.
        weights: How often each set of inputs counts.
    """
    chosen, dense = (
        weighted_sum([one[which] for one in samples], weights) for which in ("chosen", "dense")
    )
    return ratio(chosen, dense)
