"""The sentence that says where a package diverges: it is worded here alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.locate import Between, Cause, Divergence
from moh_deploy.validate.bisection.places import NodePlace

MOST_NAMES = 5
_MOST_MODULES = 8

_CAUSES: dict[Cause, str] = {
    "kernel": "a kernel computes something else than the function body of its node",
    "optimisation": "ONNX Runtime's graph optimisations change the result",
    "precision": "lower precision",
    "float32": "in float32 it is off by more than the target, and by no more than `verify` allows:"
    " that may be rounding, or the graph",
    "graph": "the graph computes something else than the original model",
}

_REFERENCE = " --reference DIR, a float32 package of the model that is right, leads to the node."


def divergence_text(found: Divergence) -> str:
    """Say where it is: the node, or between which recorded values, or that nothing tells."""
    differences = f" ({'; '.join(found.differences)})" if found.differences else ""
    more = _REFERENCE if found.against is None and found.cause == "graph" else ""
    return f"{_place(found)}{differences}: {_CAUSES[found.cause]}.{more}"


def size_text(error: NodeError) -> str:
    """Say how large the error behind a node is."""
    if not error.finite:
        return "NaN or infinity"
    return "nothing alike" if math.isinf(error.behind) else f"{error.behind:.2g}"


def _place(found: Divergence) -> str:
    if found.first is not None:
        shows = "first shows at" if found.cause == "precision" else "first diverges at"
        return (
            f"{shows} {found.first.place}: an error of {found.first.before:.2g} before it,"
            f" {size_text(found.first)} behind it, as a share of the largest value, against"
            f" {found.against}"
        )
    if found.step is not None:
        return (
            f"no single node is beyond rounding, errors add up: {found.step.place} adds most,"
            f" {found.step.before:.2g} before it, {size_text(found.step)} behind it, against"
            f" {found.against}"
        )
    if found.between is None:
        return "diverges, and nothing that was recorded tells where"
    return _between(found, found.between)


def _between(found: Divergence, between: Between) -> str:
    text = f"diverges {_bounds(found, between)}"
    if not any(one.reason is not None for one in found.wrong):
        text = (
            "with the reference gates fed every recorded value is within its limit, errors add up;"
            f" what the {between.before} is off by arises {_bounds(found, between)}"
        )
    nodes, alone = between.nodes, between.alone
    if alone and len(alone) < len(nodes):
        text = f"{text}: {_one_of(nodes)}; if no other one is wrong, {_one_of(alone)}"
        nodes = alone
    else:
        text = f"{text}: {_one_of(nodes)}"
    text = f"{text}: {_names(nodes)}"
    if not between.unseen:
        return text
    return (
        f"{text}; or {_one_of(between.unseen)} before, where a fault need not show in the"
        f" {_listed(between.after)}: {_names(between.unseen)}"
    )


def _bounds(found: Divergence, between: Between) -> str:
    """Say which recorded values the nodes lie between: behind the ones, before the other."""
    order = [one.what for one in found.checkpoints]
    before, after = between.before, _listed(between.after)
    agree = "agrees" if len(between.after) == 1 else "agree"
    if not between.after:
        return f"before the {before}; no other recorded value proves anything there right"
    if all(order.index(one) < order.index(before) for one in between.after):
        return f"between the {after}, which {agree} to rounding, and the {before}"
    return f"in what leads to the {before}, and not to the {after}, which {agree} to rounding"


def _listed(values: Sequence[str]) -> str:
    more = len(values) - MOST_NAMES
    return ", the ".join(values[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _one_of(places: Sequence[NodePlace]) -> str:
    return "this node" if len(places) == 1 else f"one of {len(places)} nodes"


def _names(places: Sequence[NodePlace]) -> str:
    """Name the nodes if they are few, or else their modules."""
    if len(places) <= MOST_NAMES:
        return ", ".join(str(one) for one in places)
    counts = Counter(one.module for one in places)
    named = [f"{count} in '{module}'" for module, count in list(counts.items())[:_MOST_MODULES]]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and others in {more} more modules" if more > 0 else "")
