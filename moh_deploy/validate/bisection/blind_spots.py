"""Find the nodes whose faults would not show in the recorded values that agree.

A router behind a norm does not see that all it reads is twice as large, nor one behind a norm of
centred values that a number was added to all of them; and a value hardly sees what reaches others
by another path. So a node counts as right only if a fault in it, made on purpose, shows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.package.switches import reads
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.checkpoint import CLEAR, FLOAT32_STEP, ROUNDING, Checkpoint
from moh_deploy.validate.bisection.forced_model import ForcedModel
from moh_deploy.validate.bisection.judge import VariantJudge
from moh_deploy.validate.bisection.places import ModelGraph, Reached
from moh_deploy.validate.bisection.recorded_value import RecordedValue

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
    """The search for such nodes in one package.

    Attributes:
        judge: Says what was recorded.
        model: In float32, with the reference gates fed to it.
        graph: The graph in which nodes are looked for.
        wrong: A recorded value that is wrong.
        exact: The recorded values that prove nodes before them right.
    """

    judge: VariantJudge
    model: ForcedModel
    graph: ModelGraph
    wrong: Checkpoint
    exact: Sequence[Checkpoint]

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
            moved = {
                recorded_value.value: self._moved(recorded_value, got)
                for recorded_value in self._recorded
            }
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

    def _moved(self, recorded_value: RecordedValue, got: Mapping[str, Array]) -> float:
        before, after = recorded_value.of(self._still), recorded_value.of(got)
        drift = None if before is None else recorded_value.drift(after, before)
        return math.nan if drift is None else drift

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
    right, one, limits = "moh.right", "moh.one", ("moh.smallest", "moh.largest")
    # Readers keep the name; the node itself writes to another one.
    for node in graph.node:
        if value in node.output:
            node.output[list(node.output).index(value)] = right
    for name, number in zip((one, *limits), (1.0, -_LARGEST, _LARGEST), strict=True):
        graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [number]))
    for name in _FAULTS:
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))

    def add(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    # Seeded: a search finds the same nodes when it is run again.
    draw = add("RandomUniformLike", [right], "moh.draw", low=-1.0, high=1.0, seed=1.0)
    drawn = add("Mul", [draw, noise], "moh.drawn")
    factor = add("Add", [drawn, add("Add", [one, scale], "moh.scaled")], "moh.factor")
    # A mask in the value would make the mean infinite.
    sizes = add("Abs", [add("Clip", [right, *limits], "moh.finite")], "moh.sizes")
    size = add("ReduceMean", [sizes], "moh.size", keepdims=0)
    moved = add("Mul", [right, factor], "moh.moved")
    add("Add", [moved, add("Mul", [size, shift], "moh.shifted")], value)
