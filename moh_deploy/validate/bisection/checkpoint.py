"""Tell which recorded values of the original prove the nodes before them right, or wrong."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.graph.weight_noise import add_weight_noise, weight_noise
from moh_deploy.package.graph_nodes import reads
from moh_deploy.report.report import HIDDEN
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.judge import Recorded, RecordedValue, VariantJudge
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph, Reached, graph_of
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
    """A recorded value, and whether a run that has the reference gates fed to it computes it."""

    what: str  # `output 'y'`, or `router of 'blocks.0.attn'`
    value: str  # its name in the graph that has gates fed to it
    agrees: bool  # it is within its limit. If not, a node before it is wrong.
    # It agrees to rounding, and a fault before it that makes what is wrong would show in it. One
    # that agrees and is not exact proves nothing.
    exact: bool = False
    # The largest error where the same heads are chosen; or None.
    error: float | None = field(default=None, metadata=HIDDEN)
    # How far it moves if all weights before it do, as a share of that; 0 if it does not.
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
            drift = recorded_value.moved(still, moved)
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


# Find the nodes whose faults would not show in the recorded values that agree.
#
# A router behind a norm does not see that all it reads is twice as large, nor one behind a norm of
# centred values that a number was added to all of them; and a value hardly sees what reaches others
# by another path. So a node counts as right only if a fault in it, made on purpose, shows.

MOST_TRIED = 200
"""Nodes that are made wrong, each in a session of its own; what is left after them is not seen."""

_STEP = 2.0**-6
"""How wrong they are made: far above rounding, and small enough for effects to be in proportion."""

_SMALL = 2.0**-7
"""The part of what `_STEP` does that has to show where it is not known how large the fault is."""

_MOST = 4.0
"""How many times what `_STEP` does is believed to be in proportion."""

_FAULTS = ("moh.scale", "moh.shift", "moh.noise")
"""Inputs of the variants: by which share of its size a value is scaled, shifted, or moved at
random."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

_LARGEST = 1e8
"""Larger numbers are what masks are made of."""


@dataclass(frozen=True)
class BlindSpots:
    """The search for such nodes in one package."""

    judge: VariantJudge  # says what was recorded
    model: ForcedModel  # in float32, with the reference gates fed to it
    graph: ModelGraph  # the graph in which nodes are looked for
    wrong: Checkpoint  # a recorded value that is wrong
    exact: Sequence[Checkpoint]  # the recorded values that prove nodes before them right

    def find(self, suspects: Reached) -> Reached:
        """Return the nodes that lead to exact values, and may be wrong nonetheless.

        Those next to the suspects are tried, then what leads to those that are not seen. Behind a
        node that is seen, nothing has to be tried: it is seen there.

        Args:
            suspects: The nodes that lead to the wrong value, and to nothing exact.
        """
        # What the agreeing values seem to prove right, of what leads to the wrong one.
        proven = self.graph.before(self.wrong.value) - suspects
        waiting, tried, unseen = self._makers(suspects, proven), set[int](), set[int]()
        while waiting:
            index = waiting.pop()
            if index in tried:
                continue
            tried.add(index)
            if index >= self.graph.own:
                continue  # It feeds gates, which are the recorded ones.
            # Out of tries, a node counts as unseen: more nodes are named, and none is acquitted
            # unproven.
            if len(tried) > MOST_TRIED or not self._is_seen(self.graph.nodes[index]):
                unseen.add(index)
                waiting += self._makers([index], proven)
        return frozenset(unseen)

    def _makers(self, readers: Collection[int], among: Reached) -> list[int]:
        """Return the nodes, of some, that make what others read."""
        names = {name for index in readers for name in reads(self.graph.nodes[index])}
        makers = (self.graph.makers[name] for name in names if name in self.graph.makers)
        return sorted(among.intersection(makers))

    def _is_seen(self, node: onnx.NodeProto) -> bool:
        """Tell whether faults of a node show.

        Of what is no float it is taken for granted; floats of another type cannot be tried.
        """
        types = {name: self._types.get(name) for name in node.output if name}
        floats = [type_ for type_ in types.items() if type_[1] in (None, *_FLOATS)]
        return all(dtype == TensorProto.FLOAT and self._shows(name) for name, dtype in floats)

    @cached_property
    def _types(self) -> Mapping[str, int]:
        return self.model.value_types()

    def _shows(self, value: str) -> bool:
        """Tell whether each fault of a value that makes the wrong one wrong shows in an exact
        one."""
        inner = [recorded_value.value for recorded_value in self._recorded if recorded_value.inner]
        runner = self.model.open(inner, [lambda graph: _add_faults(graph, value)])
        # One recorded run will do: faults are as large as 1/64 of the value, far above rounding.
        inputs = self.model.inputs(self.judge.vectors[0])
        for fault in _FAULTS:
            # One kind of fault at a time, all in one session: a norm hides scales, a mean hides
            # shifts.
            steps = {name: np.float32(_STEP if name == fault else 0) for name in _FAULTS}
            got = runner.run({**inputs, **{name: np.asarray(step) for name, step in steps.items()}})
            moved = {}
            for recorded in self._recorded:
                drift = recorded.moved(self._still, got)
                moved[recorded.value] = math.nan if drift is None else drift
            # Every kind has to show somewhere: the real fault may be of that kind alone.
            if not any(self._proves(checkpoint, moved) for checkpoint in self.exact):
                return False
        return True

    def _proves(self, exact: Checkpoint, moved: Mapping[str, float]) -> bool:
        """Tell whether a fault that moves values like this would show in an exact one, if it were
        as large as it takes to make what is wrong."""
        wrong, moves = self.wrong, moved[self.wrong.value]
        # Infinite, NaN, or no token left that chose the same heads: as visible as it gets.
        if not math.isfinite(moved[exact.value]):
            return True
        if wrong.reaction and moves <= ROUNDING * FLOAT32_STEP * wrong.reaction:
            return True  # It cannot be what is wrong.
        # How large the real fault is, in units of the one that was made: the wrong value tells by
        # how far it is off, as long as effects are in proportion.
        times = _SMALL
        if wrong.error is not None and wrong.reaction and math.isfinite(moves):
            times = min(_MOST, wrong.error / moves)
        # It has to stand out from what the value is off anyway, and from float32's rounding.
        rounding = max(exact.error or 0.0, FLOAT32_STEP * exact.reaction)
        return times * moved[exact.value] >= CLEAR * rounding

    @cached_property
    def _recorded(self) -> tuple[RecordedValue, ...]:
        known = {checkpoint.value for checkpoint in (self.wrong, *self.exact)}
        values = self.judge.values(self.model, self.judge.vectors[0], inner=True)
        return tuple(value for value in values if value.value in known)

    @cached_property
    def _still(self) -> Mapping[str, Array]:
        """The results of the model without any fault."""
        return self.judge.open(self.model, inner=True).run(self.model.inputs(self.judge.vectors[0]))


def _add_faults(graph: onnx.GraphProto, value: str) -> None:
    """Make a value v * (1 + scale + noise * uniform(-1, 1)) + shift * mean |v| of what it is.

    Nodes are added at the end: ONNX Runtime sorts them.
    """
    scale, shift, noise = _FAULTS
    right, unit, limits = "moh.right", "moh.one", ("moh.smallest", "moh.largest")
    # Readers keep the name; the node itself writes to another one.
    for node in graph.node:
        if value in node.output:
            node.output[list(node.output).index(value)] = right
    for name, number in zip((unit, *limits), (1.0, -_LARGEST, _LARGEST), strict=True):
        graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [number]))
    for name in _FAULTS:
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))

    def add(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    # Seeded: a search finds the same nodes when it is run again.
    draw = add("RandomUniformLike", [right], "moh.draw", low=-1.0, high=1.0, seed=1.0)
    drawn = add("Mul", [draw, noise], "moh.drawn")
    factor = add("Add", [drawn, add("Add", [unit, scale], "moh.scaled")], "moh.factor")
    # A mask in the value would make the mean infinite.
    sizes = add("Abs", [add("Clip", [right, *limits], "moh.finite")], "moh.sizes")
    size = add("ReduceMean", [sizes], "moh.size", keepdims=0)
    moved = add("Mul", [right, factor], "moh.moved")
    add("Add", [moved, add("Mul", [size, shift], "moh.shifted")], value)
