"""Refuse measured times in a manifest that its readers could not compute with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.measured import Tuning
from moh_deploy.package.problems import (
    MOST_SIZE,
    Problem,
    amount_problems,
    length_problems,
    listed,
    number_problems,
    sizes_problems,
)


def tuning_problems(tuning: Tuning, layers: Sequence[LayerInfo]) -> Iterator[Problem]:
    """Say what nobody can have measured of a model with these layers."""
    # All lists run along these: one entry for each set of sizes, or for each layer.
    num_sets = len(tuning.sizes)
    yield from number_problems("tuning.threads", tuning.threads, 1, MOST_SIZE)
    yield from sizes_problems("tuning.sizes", tuning.sizes)
    yield from length_problems("tuning.weights", tuning.weights, num_sets, "sets of sizes")
    yield from length_problems("tuning.layer_ms", tuning.layer_ms, len(layers), "layers")
    yield from length_problems("tuning.model_ms", tuning.model_ms, num_sets, "sets of sizes")
    for index, weight in enumerate(tuning.weights):
        yield from amount_problems(f"tuning.weights[{index}]", weight)
    if any(tuning.layer_ms) and not sum(tuning.weights):
        yield "tuning.weights", "are all 0, so the times in layer_ms have no mean"
    for index, sets in enumerate(tuning.layer_ms):
        yield from _times_problems(f"tuning.layer_ms[{index}]", sets, num_sets)
    for index, times in enumerate(tuning.model_ms):
        yield from _amounts_problems(f"tuning.model_ms[{index}]", times)
    ranged = {
        name for layer in layers for range_ in layer.ranges for name in range_.size.split("*")
    }
    for index, sizes in enumerate(tuning.sizes):
        for name in sorted(ranged - sizes.keys()):
            yield f"tuning.sizes[{index}]", f"has no '{name[:100]}', by which layers choose"


def _times_problems(
    key: str, sets: Sequence[Mapping[str, float]], num_sets: int
) -> Iterator[Problem]:
    yield from length_problems(key, sets, num_sets, "sets of sizes")
    for index, times in enumerate(sets):
        yield from _amounts_problems(f"{key}[{index}]", times)
        if times.keys() != sets[0].keys():
            yield f"{key}[{index}]", f"has {listed(times)}, but {key}[0] has {listed(sets[0])}"


def _amounts_problems(key: str, times: Mapping[str, float]) -> Iterator[Problem]:
    for choice, milliseconds in times.items():
        yield from amount_problems(f"{key}.{choice}", milliseconds)
