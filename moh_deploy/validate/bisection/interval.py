"""Bound the place of a fault by the recorded values of the original model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.validate.bisection.checkpoint import Checkpoint
from moh_deploy.validate.bisection.places import ModelGraph, Reached


@dataclass(frozen=True)
class Interval:
    """The nodes of which one is wrong.

    Attributes:
        before: The recorded value that is wrong: one of the nodes that lead to it is.
        after: The values that prove nodes before it right, as few as do.
        nodes: Those that lead to `before`, and to nothing that proves them right.
        alone: Those of them that lead to every value that is wrong: if a single node is wrong, it
            is one of these.
    """

    before: Checkpoint
    after: tuple[Checkpoint, ...]
    nodes: Reached
    alone: Reached


def find_interval(graph: ModelGraph, checkpoints: Sequence[Checkpoint]) -> Interval | None:
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
    nodes = reached[before.value] - right
    # A single fault has to lead to every value that is wrong.
    alone = nodes.intersection(*(reached[checkpoint.value] for checkpoint in wrong))
    return Interval(before, _fewest(exact, reached[before.value], reached), nodes, alone)


def _fewest(
    exact: Sequence[Checkpoint], nodes: Reached, reached: dict[str, Reached]
) -> tuple[Checkpoint, ...]:
    """Return the values that prove as many of some nodes right as all do, the largest first."""
    found: list[Checkpoint] = []
    proven = frozenset[int]()
    # Greedy, those that prove most first: the report names few values instead of all.
    for checkpoint in sorted(exact, key=lambda group: -len(reached[group.value] & nodes)):
        if not reached[checkpoint.value] & nodes <= proven:
            found.append(checkpoint)
            proven |= reached[checkpoint.value] & nodes
    return tuple(checkpoint for checkpoint in exact if checkpoint in found)
