"""Tell apart kernels, graph optimisations, rounding and the graph, and say where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moh_deploy.bisection.divergence import (
    SAME_PRECISION,
    NodeError,
    first_beyond,
    largest_step,
    node_errors,
)
from moh_deploy.bisection.experiments import Experiments
from moh_deploy.bisection.forced_model import ForcedModel
from moh_deploy.bisection.inner_values import InnerValue, compare_values
from moh_deploy.bisection.judge import Recorded
from moh_deploy.bisection.node_difference import WeightedGraph, node_differences
from moh_deploy.bisection.places import ModelGraph, Place, Reached
from moh_deploy.bisection.suspects import suspects, wrong_values
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage

Cause = Literal["kernel", "optimisation", "precision", "float32", "graph"]

IN_GRAPH: tuple[Cause, ...] = ("float32", "graph")
"""What no node in float32 makes right."""


@dataclass(frozen=True)
class Divergence:
    """Where a model first parts from what it should compute.

    Attributes:
        cause: `kernel` of a MoH node; `optimisation` of the graph by the runtime; `precision`, what
            is rounded to fewer bits; the `graph` itself: nodes, attributes, weights; or `float32`,
            where the graph is off by more than the target and less than the policy allows: that may
            be its rounding.
        against: What the inner values were compared with; None where there is nothing to compare
            them with.
        first: The first node whose result is off by more than rounding; None where no single one
            is, or nothing was compared.
        step: The node that adds most, where no single one is beyond rounding.
        differences: How the first one differs from its counterpart in the reference.
        suspects: The nodes that lead to all recorded values that are wrong, and to none that is
            right, in execution order.
        wrong: The recorded values that are wrong, or nearest to it.
    """

    cause: Cause
    against: str | None
    first: NodeError | None
    step: NodeError | None
    differences: tuple[str, ...]
    suspects: tuple[Place, ...]
    wrong: tuple[Recorded, ...]

    @property
    def node(self) -> Place | None:
        """The node to look at; None where there are only suspects."""
        found = self.first or self.step
        return None if found is None else found.place

    @property
    def modules(self) -> tuple[str, ...]:
        """Of that node, or else of the suspects."""
        places = self.suspects if self.node is None else (self.node,)
        return tuple(dict.fromkeys(place.module for place in places))


@dataclass(frozen=True)
class Located:
    """A divergence, and what it was read from.

    Attributes:
        divergence: Where it is.
        errors: The error of every node that was compared, in execution order.
        values: The values that were compared.
    """

    divergence: Divergence
    errors: tuple[NodeError, ...]
    values: dict[str, InnerValue]


def locate(runs: Experiments) -> Located:
    """Find out what is wrong with a package that is not right, by leaving out one thing after the
    other, and where that is.

    Raises:
        ConfigError: The reference is not right itself.
    """
    if runs.right(runs.plain):
        return _in_runtime(runs)
    if runs.float32 is not None and runs.right(runs.unrounded):
        bound, against = runs.policy.rule(runs.precision).relative, "the same graph in float32"
        return _compared(
            runs, runs.plain, runs.unrounded, runs.recorded, "precision", against, bound
        )
    return _in_graph(runs)


def _in_runtime(runs: Experiments) -> Located:
    """The function bodies are right if they run as they are written."""
    kernels = runs.plain.run_as(runs.kernels, optimize=False)
    if runs.kernels == "off" or runs.right(kernels):
        return _suspected(runs.plain, runs.recorded_as_run, "optimisation")
    recorded, against = runs.judge.judge(kernels), "the function bodies"
    bound = max(SAME_PRECISION, runs.policy.rule(runs.precision).least)
    return _compared(runs, kernels, runs.plain, recorded, "kernel", against, bound)


def _in_graph(runs: Experiments) -> Located:
    recorded = runs.judge.judge(runs.unrounded)
    within = runs.target is not None and runs.allowed(runs.unrounded)
    cause: Cause = "float32" if within else "graph"
    if runs.reference is None:
        return _suspected(runs.unrounded, recorded, cause)
    believed = ForcedModel.of(runs.reference, runs.vectors)
    if not runs.right(believed):
        raise _cannot_tell(runs, runs.reference, believed)
    against = str(runs.reference.root)
    return _compared(runs, runs.unrounded, believed, recorded, cause, against, SAME_PRECISION)


def _cannot_tell(runs: Experiments, reference: OnnxPackage, believed: ForcedModel) -> ConfigError:
    if runs.target is not None and runs.allowed(believed):
        return ConfigError(
            f"the reference {reference.root} is off by more than the target {runs.target:g} itself,"
            " and by no more than `verify` allows: it cannot tell what is.",
            hint="float32 rounds, too: raise --target, or leave --reference out.",
        )
    return ConfigError(
        f"the reference {reference.root} differs from the recorded runs of"
        f" {runs.package.root} as well: it cannot tell where that is wrong.",
        hint="Leave --reference out, or give a package that passes `moh-deploy verify`.",
    )


def _suspected(model: ForcedModel, recorded: Sequence[Recorded], cause: Cause) -> Located:
    """Say which nodes may be wrong, with nothing to compare inner values with."""
    graph = graph_of(model)
    places = _own(graph, suspects(graph, recorded))
    found = Divergence(cause, None, None, None, (), places, wrong_values(recorded))
    return Located(found, (), {})


def _compared(
    runs: Experiments,
    tested: ForcedModel,
    believed: ForcedModel,
    recorded: Sequence[Recorded],
    cause: Cause,
    against: str,
    bound: float,
) -> Located:
    """Compare all inner values that two graphs share, and take the first that matters."""
    graph, theirs = graph_of(tested), graph_of(believed)
    shared = [name for name in graph.makers if name in theirs.makers]
    values = compare_values(tested, believed, shared, runs.vectors)
    errors = node_errors(graph, values)
    wrong = wrong_values(recorded)
    matters = frozenset[int]().union(*(graph.before(one.value) for one in wrong))
    first = first_beyond(errors, bound, matters)
    step = None if first is not None else largest_step(errors, matters)
    differences = _differences(tested, believed, first) if cause in IN_GRAPH else ()
    places = _own(graph, suspects(graph, recorded))
    found = Divergence(cause, against, first, step, differences, places, wrong)
    return Located(found, tuple(errors[index] for index in sorted(errors)), values)


def _differences(
    tested: ForcedModel, believed: ForcedModel, first: NodeError | None
) -> tuple[str, ...]:
    if first is None:
        return ()
    ours, theirs = (
        WeightedGraph(graph_of(one), one.package.root, one.functions())
        for one in (tested, believed)
    )
    return node_differences(ours, theirs, first.place.value)


def graph_of(model: ForcedModel) -> ModelGraph:
    layers = model.package.manifest.layers
    written = ModelGraph(ForcedModel(model.package, {}).graph(), layers)
    return ModelGraph(model.graph(), layers, written)


def _own(graph: ModelGraph, found: Reached) -> tuple[Place, ...]:
    return tuple(graph.place(index) for index in sorted(found) if index < graph.own)
