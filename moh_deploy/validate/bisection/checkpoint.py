"""Tell which recorded values of the original prove the nodes before them right, or wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from moh_deploy.graph.weight_noise import add_weight_noise, weight_noise
from moh_deploy.package.switches import reads
from moh_deploy.report.json import HIDDEN
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.forced_model import ForcedModel, graph_of
from moh_deploy.validate.bisection.judge import Recorded, VariantJudge
from moh_deploy.validate.bisection.places import ModelGraph
from moh_deploy.validate.compare.noise_floor import STEPS
from moh_deploy.validate.reference.differences import worst

FLOAT32_STEP = 2.0**-23

ROUNDING = 8
"""Steps of the dtype by which every weight may be off for an error to be one of rounding. Right
packages in float32 are at 0.4 to 3.4."""

CLEAR = 30
"""How much smaller an error is than what is wrong would make it: a fault does not reach every value
as noise in all weights does."""

_NEAR = 0.1
"""Where all are within their limits, those are looked at that have this part of the largest share:
errors that add up have a source, and what is behind it carries most of them."""


@dataclass(frozen=True)
class Checkpoint:
    """A recorded value, and whether a run that has the reference gates fed to it computes it.

    Attributes:
        what: `output 'y'`, or `router of 'blocks.0.attn'`.
        value: Its name in the graph that has gates fed to it.
        agrees: It is within its limit. If not, a node before it is wrong.
        exact: It agrees to rounding, and a fault before it that makes what is wrong would show in
            it. One that agrees and is not exact proves nothing.
        error: The largest error where the same heads are chosen; None where there is none to take.
        reaction: How far it moves if all weights before it do, as a share of that; 0 if it does
            not.
    """

    what: str
    value: str
    agrees: bool
    exact: bool = False
    error: float | None = field(default=None, metadata=HIDDEN)
    reaction: float = field(default=0.0, metadata=HIDDEN)


def collect_checkpoints(runs: Experiments, recorded: Sequence[Recorded]) -> tuple[Checkpoint, ...]:
    """Return a checkpoint for every recorded value, in the order in which they are computed.

    Args:
        runs: Of the package.
        recorded: How far one of the runs is from each of them.
    """
    model = runs.unrounded
    if not model.gates and model.package.manifest.layers:
        # Behind another choice of heads nothing is as it was: that a value agrees tells nothing.
        return checkpoints(recorded, {}, runs.precision)
    return checkpoints(recorded, measure_reactions(runs.judge, model), runs.precision)


def checkpoints(
    recorded: Sequence[Recorded], reactions: Mapping[str, float], precision: str
) -> tuple[Checkpoint, ...]:
    """Make checkpoints of recorded values: wrong, exact, or agreeing without proving anything.

    An error is measured as the share by which every weight before the value would have to be off to
    make it: so errors of values that react much, little or not at all can be compared.

    Args:
        recorded: How far a run is from each value.
        reactions: How far each value moves with the weights before it, see `measure_reactions`.
            Nothing is exact of what is not in it.
        precision: Of the weights.
    """
    wrong = wrong_values(recorded)
    # A value that does not react at all says nothing, however well it agrees.
    known = {name: reaction for name, reaction in reactions.items() if 0 < reaction < math.inf}
    shares = {
        point.value: point.drift / known[point.value]
        for point in recorded
        if point.drift is not None and point.value in known
    }
    # How wrong the weights would have to be to make the wrong values: exact is far below that, too.
    made = [shares[run.value] for run in wrong if run.value in shares]
    step = STEPS.get(precision, FLOAT32_STEP)
    # NaN is left out of the minimum: it would make every comparison with it False.
    limit = min([ROUNDING * step, *(value / CLEAR for value in made if not math.isnan(value))])
    return tuple(
        Checkpoint(
            point.what,
            point.value,
            agrees=point not in wrong,
            exact=point not in wrong and shares.get(point.value, math.inf) <= limit,
            error=point.drift,
            reaction=known.get(point.value, 0.0),
        )
        for point in recorded
    )


def wrong_values(recorded: Sequence[Recorded]) -> tuple[Recorded, ...]:
    """Return the values that are wrong; if none is, those nearest to their limits."""
    wrong = tuple(point for point in recorded if point.reason is not None)
    if wrong:
        return wrong
    # Nothing is wrong by itself, yet errors add up: the nearest to its limit takes its place.
    most = max((point.share for point in recorded), default=0.0)
    return tuple(point for point in recorded if point.share > 0 and point.share >= _NEAR * most)


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
    values = {
        recorded_value.value: recorded_value
        for recorded_value in judge.values(model, judge.vectors[0], inner=True)
    }
    weights = _shared_weights(graph_of(model), values)
    inner = [value.value for value in values.values() if value.inner]
    # One session with the step as an input: 0 gives the model as it is.
    runner = model.open(inner, [lambda graph: add_weight_noise(graph, weights)])
    found: dict[str, list[float]] = {name: [] for name in values}
    for vectors in judge.vectors:
        inputs = model.inputs(vectors)
        # The same draw in every run: reactions of runs are compared with each other.
        still, moved = (
            runner.run({**inputs, **weight_noise(step, draw=0)}) for step in (0.0, STEP)
        )
        for recorded_value in judge.values(model, vectors, inner=True):
            before, after = recorded_value.of(still), recorded_value.of(moved)
            drift = None if before is None else recorded_value.drift(after, before)
            if drift is not None:
                found[recorded_value.value].append(drift / STEP)
    # The run in which the value reacts most: it is the one that shows most.
    return {name: worst(reactions) for name, reactions in found.items()}


def _shared_weights(graph: ModelGraph, values: Collection[str]) -> set[str]:
    """Return the weights that more than one of some values is made with."""
    weights = {initializer.name for initializer in graph.graph.initializer}
    times = Counter(index for name in values for index in graph.before(name))
    shared = [graph.nodes[index] for index, count in times.items() if count > 1]
    return {name for node in shared for name in reads(node) if name in weights}
