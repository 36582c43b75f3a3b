"""Tell apart kernels, graph optimisations, rounding and the graph, and say where it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moh_deploy.errors import ConfigError
from moh_deploy.report.report import HIDDEN, in_json
from moh_deploy.validate.bisection import places
from moh_deploy.validate.bisection.checkpoint import (
    BlindSpots,
    Checkpoint,
    collect_checkpoints,
    wrong_values,
)
from moh_deploy.validate.bisection.divergence import (
    SAME_PRECISION,
    InnerValue,
    NodeError,
    compare_values,
    first_beyond,
    largest_step,
    node_errors,
)
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.judge import Recorded
from moh_deploy.validate.bisection.places import WeightedGraph, node_differences
from moh_deploy.validate.compare.tolerances import rule_name

# Bound the place of a fault by the recorded values of the original model.


@dataclass(frozen=True)
class Interval:
    """Nodes with a wrong one among them."""

    before: Checkpoint  # the recorded value that is wrong: one of the nodes that lead to it is
    after: tuple[Checkpoint, ...]  # the values that prove nodes before it right, as few as do
    nodes: places.Reached  # those that lead to `before`, and to nothing that proves them right
    # Those of them that lead to every value that is wrong: if a single node is wrong, it is one of
    # these.
    alone: places.Reached


def find_interval(graph: places.ModelGraph, checkpoints: Sequence[Checkpoint]) -> Interval | None:
    """Return the interval of the first value that is wrong; None if none is.

    Each value that is wrong has a wrong node before it, whatever the others are: with several
    faults, too, the interval holds one.

    Args:
        graph: With the gates fed, so that no path leads through them.
        checkpoints: In the order in which they are computed.
    """
    reached = {checkpoint.value: graph.before(checkpoint.value) for checkpoint in checkpoints}
    wrong = [checkpoint for checkpoint in checkpoints if not checkpoint.agrees]
    exact = [checkpoint for checkpoint in checkpoints if checkpoint.exact]
    # Nodes before an exact value are right, as far as a fault in them would show there.
    right = frozenset[int]().union(*(reached[checkpoint.value] for checkpoint in exact))
    if not wrong:
        return None
    if any(reached[checkpoint.value] <= right for checkpoint in wrong):
        # It is wrong, and all before it is proven right: the proofs are not to be believed.
        exact, right = [], frozenset()
    # The first wrong value: fewer nodes lead to it than to the later ones.
    before = wrong[0]
    nodes = reached[before.value]
    # Greedy, values that prove most nodes right first: the report names few of them.
    proofs: list[Checkpoint] = []
    proven = frozenset[int]()
    for checkpoint in sorted(exact, key=lambda value: -len(reached[value.value] & nodes)):
        if not reached[checkpoint.value] & nodes <= proven:
            proofs.append(checkpoint)
            proven |= reached[checkpoint.value] & nodes
    after = tuple(checkpoint for checkpoint in exact if checkpoint in proofs)
    # A single fault has to lead to every value that is wrong.
    suspects = nodes - right
    alone = suspects.intersection(*(reached[checkpoint.value] for checkpoint in wrong))
    return Interval(before, after, suspects, alone)


Cause = Literal["kernel", "optimisation", "precision", "float32", "graph"]

IN_GRAPH: tuple[Cause, ...] = ("float32", "graph")
"""What no node in float32 makes right."""


@dataclass(frozen=True)
class Between:
    """Nodes with at least a wrong one, see `Interval`."""

    after: tuple[str, ...]  # the recorded values that prove what leads to them right
    before: str  # the recorded value that is wrong, or nearest to it
    # Those that lead to it, and to nothing that proves them right, in execution order.
    nodes: tuple[places.NodePlace, ...]
    # Those of them that alone can make all that is wrong.
    alone: tuple[places.NodePlace, ...] = field(metadata=HIDDEN)
    # Nodes that lead to `after`, and may be wrong nonetheless: it would not show there.
    unseen: tuple[places.NodePlace, ...]


@dataclass(frozen=True)
class Divergence:
    """The place where a model first parts from its reference."""

    # `kernel` of a MoH node; `optimisation` of the graph by the runtime; `precision`, what is
    # rounded to fewer bits; the `graph` itself: nodes, attributes, weights; or `float32`, where the
    # graph is off by more than the target and less than the policy allows: that may be its
    # rounding.
    cause: Cause
    # What the inner values were compared with; None where there is nothing to compare them with.
    against: str | None
    # The first node whose result is off by more than rounding; None where no single one is, or
    # nothing was compared.
    first: NodeError | None
    step: NodeError | None  # the node that adds most, where no single one is beyond rounding
    differences: tuple[str, ...]  # how the first one differs from its counterpart in the reference
    wrong: tuple[Recorded, ...]  # the recorded values that are wrong, or nearest to it
    # What each recorded value proves, where no single node is known; in the order in which they are
    # computed.
    checkpoints: tuple[Checkpoint, ...] = ()
    # Where it is, as far as they prove it; None where a single node is known, or nothing that was
    # recorded tells.
    between: Between | None = None

    @property
    @in_json()
    def node(self) -> places.NodePlace | None:
        """The node to look at; None where it is not known."""
        found = self.first or self.step
        return None if found is None else found.place

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of that node, or else of the suspects."""
        named = self.suspects if self.node is None else (self.node,)
        return tuple(dict.fromkeys(place.module for place in named))

    @property
    @in_json()
    def module(self) -> str | None:
        """Of that node, or of all suspects; None where there are several."""
        return self.modules[0] if len(self.modules) == 1 else None

    @property
    @in_json()
    def beyond_rounding(self) -> bool:
        """A single node is off by more than rounding."""
        return self.first is not None

    @property
    @in_json()
    def suspects(self) -> tuple[places.NodePlace, ...]:
        """The suspects if a single node is wrong."""
        if self.between is None:
            return ()
        return (*(self.between.alone or self.between.nodes), *self.between.unseen)


@dataclass(frozen=True)
class Located:
    """A divergence, and what it was read from."""

    divergence: Divergence  # where it is
    errors: tuple[NodeError, ...]  # the error of every node that was compared, in execution order
    values: dict[str, InnerValue]  # the values that were compared


def locate(runs: Experiments) -> Located:
    """Find out what is wrong with a package that is not right, by leaving out one thing after the
    other, and where that is.

    Raises:
        ConfigError: The reference is not right itself.
    """
    # Written as it is, it is right: the fault is in what the runtime makes of the graph.
    if runs.right(runs.plain):
        return _in_runtime(runs)
    # In float32 it is right: what is wrong is rounding to half precision.
    if runs.float32 is not None and runs.right(runs.unrounded):
        models, against = (runs.plain, runs.unrounded), "the same graph in float32"
        bound = runs.policy.rule(rule_name(runs.precision)).relative
        return _compared(runs, *models, runs.recorded, "precision", against, bound)
    return _in_graph(runs)


def _in_runtime(runs: Experiments) -> Located:
    """The function bodies are right if they run as they are written."""
    # Kernels without optimisations: if that is right, the optimisations are not.
    kernels = runs.plain.run_as(runs.kernels, optimize=False)
    if runs.kernels == "off" or runs.right(kernels):
        return _suspected(runs, runs.plain, runs.recorded_as_run, "optimisation")
    recorded, against = runs.judge.judge(kernels), "the function bodies"
    # Kernels add up in another order than the bodies: a step of the dtype is no fault.
    bound = max(SAME_PRECISION, runs.policy.rule(rule_name(runs.precision)).least)
    return _compared(runs, kernels, runs.plain, recorded, "kernel", against, bound)


def _in_graph(runs: Experiments) -> Located:
    # In float32, so that rounding does not hide where the graph is wrong.
    recorded = runs.judge.judge(runs.unrounded, inner=True)
    within = runs.target is not None and runs.allowed(runs.unrounded)
    cause: Cause = "float32" if within else "graph"
    if runs.reference is None:
        return _suspected(runs, runs.unrounded, recorded, cause)
    believed = places.ForcedModel.of(runs.reference, runs.vectors)
    against = str(runs.reference.root)
    # Compared with a reference that is itself wrong, innocent nodes would be named.
    if not runs.right(believed):
        if runs.target is not None and runs.allowed(believed):
            raise ConfigError(
                f"the reference {against} is off by more than the target {runs.target:g} itself,"
                " and by no more than `verify` allows: it cannot tell what is.",
                hint="float32 rounds, too: raise --target, or leave --reference out.",
            )
        raise ConfigError(
            f"the reference {against} differs from the recorded runs of {runs.package.root} as"
            " well: it cannot tell where that is wrong.",
            hint="Leave --reference out, or give a package that passes `moh-deploy verify`.",
        )
    return _compared(runs, runs.unrounded, believed, recorded, cause, against, SAME_PRECISION)


def _suspected(
    runs: Experiments, model: places.ForcedModel, recorded: Sequence[Recorded], cause: Cause
) -> Located:
    """Say between which recorded values it is, with nothing to compare inner values with."""
    found = Divergence(cause, None, None, None, (), wrong_values(recorded))
    return Located(_bounded(runs, places.graph_of(model), recorded, found), (), {})


def _bounded(
    runs: Experiments, graph: places.ModelGraph, recorded: Sequence[Recorded], found: Divergence
) -> Divergence:
    """Add what the recorded values prove."""
    checkpoints = collect_checkpoints(runs, recorded)
    interval = find_interval(graph, checkpoints)
    if interval is None:
        return replace(found, checkpoints=checkpoints)
    exact = [checkpoint for checkpoint in checkpoints if checkpoint.exact]
    spots = BlindSpots(runs.judge, runs.unrounded, graph, interval.before, exact)
    # Without a value that proves anything, no node was acquitted that could be wrong unseen.
    unseen = spots.find(interval.nodes) if interval.after else frozenset()
    nodes, alone, hidden = (
        tuple(graph.place(index) for index in sorted(found_nodes) if index < graph.own)
        for found_nodes in (interval.nodes, interval.alone, unseen)
    )
    after = tuple(checkpoint.what for checkpoint in interval.after)
    between = Between(after, interval.before.what, nodes, alone, hidden)
    return replace(found, checkpoints=checkpoints, between=between)


def _compared(
    runs: Experiments,
    tested: places.ForcedModel,
    believed: places.ForcedModel,
    recorded: Sequence[Recorded],
    cause: Cause,
    against: str,
    bound: float,
) -> Located:
    """Compare all inner values that two graphs share, and take the first that matters."""
    graph, theirs = places.graph_of(tested), places.graph_of(believed)
    # A product in integers is several nodes, whose values stand between: the graph that it was made
    # from has the product itself.
    if runs.form is not None and tested is runs.plain:
        graph = theirs
    # By name: two exports of one model, or one graph in two precisions, name values alike.
    shared = [name for name in graph.makers if name in theirs.makers]
    values = compare_values(tested, believed, shared, runs.vectors)
    errors = node_errors(graph, values)
    wrong = wrong_values(recorded)
    # A difference that leads to no wrong value does no harm, and is not the answer.
    matters = frozenset[int]().union(*(graph.before(run.value) for run in wrong))
    first = first_beyond(errors, bound, matters)
    step = None if first is not None else largest_step(errors, matters)
    differences: tuple[str, ...] = ()
    if first is not None and cause in IN_GRAPH:
        ours, others = (
            WeightedGraph(side, model.package.root, model.functions())
            for side, model in ((graph, tested), (theirs, believed))
        )
        differences = node_differences(ours, others, first.place.value)
    found = Divergence(cause, against, first, step, differences, wrong)
    # No node stands out, so the recorded values have to bound the place.
    if found.node is None:
        found = _bounded(runs, graph, recorded, found)
    return Located(found, tuple(errors[index] for index in sorted(errors)), values)
