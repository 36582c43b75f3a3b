"""Measure how much recorded values move when the weights before them do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx

from moh_deploy.graph.switches import reads
from moh_deploy.graph.weight_noise import add_weight_noise, weight_noise
from moh_deploy.validate.bisection.forced_model import ForcedModel, graph_of
from moh_deploy.validate.bisection.judge import VariantJudge
from moh_deploy.validate.bisection.places import ModelGraph
from moh_deploy.validate.differences import worst

STEP = 2.0**-10
"""How far the weights move: far above rounding, and small enough to double with twice the step."""


def measure_reactions(judge: VariantJudge, model: ForcedModel) -> dict[str, float]:
    """Measure how far each recorded value moves if weights before it do, as a share of that.

    Those weights move that lead to more than one recorded value, each number by up to `STEP` of it
    at random: a value may speak for others by what it shares with them only. Gates of 0 and 1 do
    not move, nor does a softmax that one number dominates.

    Args:
        judge: Says what was recorded.
        model: In float32, with the reference gates fed to it.
    """
    values = {one.value: one for one in judge.values(model, judge.vectors[0], inner=True)}
    weights = _shared_weights(graph_of(model), values)
    inner = [one.value for one in values.values() if one.inner]
    # One session with the step as an input: 0 gives the model as it is.
    runner = model.open(inner, [lambda graph: add_weight_noise(graph, weights)])
    found: dict[str, list[float]] = {name: [] for name in values}
    for vectors in judge.vectors:
        inputs = model.inputs(vectors)
        # The same draw in every run: reactions of runs are compared with each other.
        still, moved = (
            runner.run({**inputs, **weight_noise(step, draw=0)}) for step in (0.0, STEP)
        )
        for one in judge.values(model, vectors, inner=True):
            before, after = one.of(still), one.of(moved)
            drift = None if before is None else one.drift(after, before)
            if drift is not None:
                found[one.value].append(drift / STEP)
    # The run in which the value reacts most: it is the one that shows most.
    return {name: worst(reactions) for name, reactions in found.items()}


def _shared_weights(graph: ModelGraph, values: Collection[str]) -> set[str]:
    """Return the weights that more than one of some values is made with."""
    weights: dict[str, onnx.TensorProto] = {one.name: one for one in graph.graph.initializer}
    times = Counter(index for name in values for index in graph.before(name))
    shared = [graph.nodes[index] for index, count in times.items() if count > 1]
    return {name for node in shared for name in reads(node) if name in weights}
