"""Tie heads where logits are computed, to find what breaks ties besides the router.

Equal logits go to the lower head index, whatever the model is. So a model makes of logits that tie
nearly what it makes of logits that fall from head to head by next to nothing. Where it does not,
something on the way from the logits to attention looks for ties, or breaks them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from moh_deploy.errors import BackendError
from moh_deploy.graph.router_front import front_values, is_exact, logit_sources
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.edge_cases.case_result import MODEL, CaseResult, CaseStatus
from moh_deploy.validate.edge_cases.followed_gates import read_problem
from moh_deploy.validate.edge_cases.routing_judge import (
    GateJudge,
    PortArrays,
    nan_output_problem,
    router_reference,
)
from moh_deploy.validate.edge_cases.source import RoutedLayer, Sides, feeding, fixed_values
from moh_deploy.validate.edge_cases.tied_logits import (
    ROUTED,
    Front,
    LogitCut,
    TiedLayer,
    TiedRun,
    is_judged,
    jump,
    same_choices,
)
from moh_deploy.validate.tolerances import coarsest, rule_name

TIES_CASE = "ties before the router"

_Values = Mapping[str, Array]


def run_ties_before(sides: Sides) -> Iterator[CaseResult]:
    """Judge every layer, and the outputs of the model.

    Args:
        sides: The package, the first of whose recorded inputs is what its function bodies are
            given.
    """
    routing = sides.routing
    # Only routed heads are chosen; a layer of shared heads has nothing to tie.
    choosing = [layer for layer in routing.routed if ROUTED in layer.router.logits]
    for layer in routing.routed:
        if layer not in choosing:
            why = "every head is shared: nothing is chosen."
            yield _result(layer.info.path, "not applicable", why)
    if not choosing:
        return
    try:
        recorded = _front_values(sides, choosing)
        layers = [layer for layer in choosing if layer.router.logits[ROUTED] in recorded]
        for layer in choosing:
            if layer not in layers:
                yield _result(layer.info.path, "not applicable", "its logits are constants.")
        if layers:
            tied = [_tied_layer(routing.graph, layer, recorded) for layer in layers]
            yield from _TiedModel(sides, tied, recorded).results()
    except BackendError as error:
        why = f"case '{TIES_CASE}': the function bodies fail: {error.message}"
        yield _result(MODEL, "failed", why)


def _front_values(sides: Sides, layers: Sequence[RoutedLayer]) -> dict[str, Array]:
    """Return all numbers that the logits of routers are computed from, in a recorded run."""
    inputs, graph = sides.package.vectors[0].inputs, sides.routing.graph
    names = {
        name
        for layer in layers
        for name in (
            *front_values(graph, layer.router, ROUTED),
            *logit_sources(graph, layer.router),
        )
    }
    # One run for all: inner values become the shapes and dtypes of what is put in.
    found = {**inputs, **sides.reference.open(sorted(names - inputs.keys())).run(inputs)}
    return {name: found[name] for name in names if found[name].dtype.kind in "fV"}


def _tied_layer(
    graph: onnx.GraphProto, layer: RoutedLayer, recorded: Mapping[str, Array]
) -> TiedLayer:
    size = recorded[layer.router.logits[ROUTED]].size
    sources = tuple(name for name in logit_sources(graph, layer.router) if name in recorded)
    between = [
        (name,)
        for name in front_values(graph, layer.router, ROUTED)
        # As many numbers as logits: one for each token and head, in whatever layout.
        if name in recorded and recorded[name].size == size
    ]
    cuts = [
        LogitCut(names, is_exact(graph, layer.router, ROUTED, names))
        # From the router backwards: the nearest cut leaves the fewest operators out.
        for names in (*between, sources)
        if names
    ]
    return TiedLayer(layer, cuts)


@dataclass(frozen=True)
class _TiedModel:
    sides: Sides
    layers: Sequence[TiedLayer]
    recorded: _Values

    def results(self) -> Iterator[CaseResult]:
        problems: dict[str, str] = {}
        deepest = max(len(layer.cuts) for layer in self.layers)
        # Each depth has its own front: what breaks ties lies between two of them.
        for depth in range(deepest):
            front = Front.of(self.sides, self.layers, depth, self.recorded)
            for path, problem in front.problems(self.sides.policy):
                problems.setdefault(path, f"logits of {_place(path)}: {problem}")
            # The whole model runs for the nearest and the farthest cut only: it takes three runs
            # for each set of numbers.
            if depth in (0, deepest - 1):
                for path, problem in self._whole(front):
                    problems.setdefault(path, problem)
        for layer in self.layers:
            yield _judged(layer.path, problems)
        wrong = [path for path in problems if path != MODEL]
        if wrong:
            why = f"layer '{wrong[0]}' is wrong, and every output stands behind it."
            yield _result(MODEL, "not run", why)
        else:
            yield _judged(MODEL, problems)

    def _whole(self, front: Front) -> Iterator[tuple[str, str]]:
        """Yield path, or MODEL, and sentence of what the whole model makes of ties."""
        seen = list(dict.fromkeys(name for layer in self.layers for name in layer.layer.values))
        runner = self.sides.reference.open(seen, feeding(front.fixed, seen))
        for ties in front.ties(self._tokens):
            runs = front.falling(ties)
            fed = [fixed_values({**front.fixed, **run.values}) for run in runs]
            values = [runner.run({**front.inputs, **mapping}) for mapping in fed]
            # Outputs are looked at only if every layer is right: they stand behind all of them.
            found = list(self._layer_problems(runs, values))
            yield from found
            alike = (
                same_choices(layer, i, runs) and is_judged(i, runs)
                for i, layer in enumerate(self.layers)
            )
            if not found and all(alike):
                problem = self._outputs_problem(values)
                if problem is not None:
                    yield MODEL, problem

    def _layer_problems(
        self, runs: Sequence[TiedRun], values: Sequence[_Values]
    ) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with each layer by itself, and the first that jumps."""
        comparable = True
        for index, layer in enumerate(self.layers):
            if not is_judged(index, runs):
                comparable = False  # A router that divides by how far scores are apart, say.
                continue
            # Where a step changes which heads are chosen, what follows may jump.
            alike = same_choices(layer, index, runs)
            problem = self._gates_problem(layer, runs[0].logits[index], values, alike)
            # From the first layer that chose other heads on, later ones see other inputs.
            comparable = comparable and alike
            if problem is None and comparable and layer.router.attention is not None:
                name, router = layer.router.attention, layer.router
                counted = self.sides.counted.of_attention(router, values[0][name].shape)
                what = self._jump(name, values, counted)
                problem = None if what is None else f"attention of {_place(layer.path)} {what}"
            if problem is not None:
                comparable = False
                yield layer.path, problem

    def _gates_problem(
        self, layer: TiedLayer, logits: PortArrays, values: Sequence[_Values], alike: bool
    ) -> str | None:
        place = _place(layer.path)
        gates = values[0][layer.router.gates]
        problem = GateJudge().mismatch(TIES_CASE, layer.router, logits, gates)
        if problem is not None:
            return f"gates of {place}: {problem}"
        # By the logits that reached the router in this run.
        made = router_reference(layer.router, logits)
        for read in layer.layer.reads:
            problem = read_problem(read, made, values[0])
            if problem is not None:
                return f"what {read.reader} reads as gates of {place}: {problem}"
            what = self._jump(read.value, values) if alike else None
            if what is not None:
                return f"what {read.reader} reads as gates of {place} {what}"
        return None

    def _outputs_problem(self, values: Sequence[_Values]) -> str | None:
        package = self.sides.package
        outputs = {output.name: values[0][output.name] for output in package.manifest.outputs}
        for name in outputs:
            counted = self.sides.counted.of_output(name, outputs[name].shape)
            what = self._jump(name, values, counted)
            if what is not None:
                return f"output '{name}' in case '{TIES_CASE}' {what}"
        of_output = self.sides.counted.of_output
        return nan_output_problem(TIES_CASE, outputs, package.vectors[0], of_output)

    def _jump(
        self, name: str, values: Sequence[_Values], counted: BoolArray | None = None
    ) -> str | None:
        # At ties, behind one step, and behind two.
        arrays = [value[name] for value in values]
        if counted is not None:
            arrays = [np.where(counted, array, arrays[0]) for array in arrays]
        if arrays[0].dtype.kind not in "fV":
            return None
        names = (arrays[0].dtype.name, rule_name(self.sides.package.manifest.precision))
        return jump(arrays, coarsest(*map(self.sides.policy.rule, names)).relative)

    @property
    def _tokens(self) -> int:
        """The fewest tokens that any router sees."""
        logits = [self.recorded[layer.router.logits[ROUTED]] for layer in self.layers]
        # Few tokens see few ties, so models with few get more draws.
        return min(math.prod(array.shape[:-1]) for array in logits)


def _place(path: str) -> str:
    return f"layer '{path}' in case '{TIES_CASE}'"


def _judged(place: str, problems: Mapping[str, str]) -> CaseResult:
    if place in problems:
        return _result(place, "failed", problems[place])
    if place == MODEL:
        return _result(place, "passed", "they do not jump at ties")
    return _result(place, "passed", "nothing but the router breaks ties, or looks for them")


def _result(place: str, status: CaseStatus, detail: str) -> CaseResult:
    return CaseResult("routing", TIES_CASE, place, status, detail)
