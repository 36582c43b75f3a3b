"""The first node at which two runs of one model part by more than rounding."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from moh_deploy.graph.switches import reads
from moh_deploy.report.json import FLAT, HIDDEN
from moh_deploy.validate.bisection.inner_values import InnerValue
from moh_deploy.validate.bisection.places import ModelGraph, NodePlace

SAME_PRECISION = 1e-5
"""Of two runs in float32, what one node may make of rounding: as the bound of a near-tie."""

# Terms may cancel: a tiny result is off by what its terms are off, so it is measured by them.
_SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True)
class NodeError:
    """The error of a node's result, beside that of the values it reads.

    Attributes:
        place: The node.
        before: The largest error of the values that it reads, as a share of their largest value.
        behind: The error of its result as a share of its largest value (for sums, of the terms').
            Infinite where it is not finite and the reference is.
        size: Largest absolute value of its result in the reference; for sums, of the terms too.
        finite: Its result is finite wherever the reference is.
    """

    place: NodePlace = field(metadata=FLAT)
    before: float
    behind: float
    size: float = field(metadata=HIDDEN)
    finite: bool = field(metadata=HIDDEN)

    @property
    def growth(self) -> float:
        """The error that the node itself adds; 0 where the values it reads are not finite."""
        return 0.0 if math.isinf(self.before) else max(self.behind - self.before, 0.0)


def node_errors(graph: ModelGraph, values: Mapping[str, InnerValue]) -> dict[int, NodeError]:
    """Return the error of each node whose result was compared, by its place in the graph.

    A float that has another name in each graph is known by its cast. What is no float has an error
    only where all that the node reads is the same: else rounding may have decided otherwise.
    """
    by_casts = _known_by_casts(graph, values)
    values = {**values, **by_casts}
    found: dict[int, NodeError] = {}
    for index, node in enumerate(graph.nodes[: graph.own]):
        if node.op_type == "Cast" and node.input[0] in by_casts:
            continue  # its result stands for what it reads
        outside = set(reads(node)).difference(node.output)  # a branch may call its result the same
        read = [values[name] for name in outside if name in values]
        # Integers are decisions: they differ by rounding as soon as anything read does.
        is_same = not any(one.error for one in read)
        known = [values[name] for name in node.output if name in values]
        made = [one for one in known if one.is_float or is_same]
        if not made:
            continue
        scale = max((one.size for one in read), default=0.0) if node.op_type in _SUMS else 0.0
        found[index] = NodeError(
            graph.place(index),
            max((_share(one) for one in read), default=0.0),
            max(_share(one, scale) for one in made),
            max(scale, *(one.size for one in made)),
            all(one.finite for one in made),
        )
    return found


def _known_by_casts(graph: ModelGraph, values: Mapping[str, InnerValue]) -> dict[str, InnerValue]:
    casts = [node for node in graph.nodes if node.op_type == "Cast" and node.output[0] in values]
    return {
        node.input[0]: values[node.output[0]]
        for node in casts
        if node.input[0] in graph.makers
        and node.input[0] not in values
        and values[node.output[0]].is_float
    }


def first_beyond(
    errors: Mapping[int, NodeError], bound: float, among: Collection[int]
) -> NodeError | None:
    """Return the first node, in execution order, whose result is not finite and should be, or else
    is off by more than a bound.

    Args:
        errors: By place in the graph.
        bound: As a share of the largest value.
        among: Places that count.
    """
    counted = [errors[index] for index in sorted(errors) if index in among]
    # Infinity spreads, so the first node that makes it comes before any that is only inaccurate.
    broken = (one for one in counted if not one.finite)
    return next(broken, None) or next((one for one in counted if one.behind > bound), None)


def largest_step(errors: Mapping[int, NodeError], among: Collection[int]) -> NodeError | None:
    """Return the node that adds most; None if none is known to add anything."""
    counted = [errors[index] for index in sorted(errors) if index in among]
    # Nothing is beyond rounding, so the answer is the node that adds most, as a hint.
    largest = max(counted, key=lambda one: one.growth, default=None)
    return largest if largest is not None and largest.growth else None


def by_module(errors: Sequence[NodeError]) -> dict[str, NodeError]:
    """Return the node with the largest error of each module, in the order in which they run."""
    worst: dict[str, NodeError] = {}
    for one in errors:
        known = worst.get(one.place.module)
        if known is None or one.behind > known.behind:
            worst[one.place.module] = one
    return worst


def _share(value: InnerValue, scale: float = 0.0) -> float:
    size = max(value.size, scale)
    # All zeros in the reference: any error at all is infinitely large beside them.
    return value.error / size if size else math.inf if value.error else 0.0
