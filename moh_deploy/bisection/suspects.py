"""Which nodes may be wrong, when only gates and outputs of the original are known.

A node that is wrong leads to every recorded value that is wrong, and to none that is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.bisection.judge import Recorded
from moh_deploy.bisection.places import ModelGraph, Reached

_NEAR = 0.1
"""Where all are within their limits, those count as wrong that have this part of the largest share:
errors that add up have a source, and what is behind it carries most of them."""


def wrong_values(recorded: Sequence[Recorded]) -> tuple[Recorded, ...]:
    """Return what is not equal; if all is, what is nearest to not being so."""
    wrong = tuple(one for one in recorded if one.reason is not None)
    if wrong:
        return wrong
    most = max((one.share for one in recorded), default=0.0)
    return tuple(one for one in recorded if one.share > 0 and one.share >= _NEAR * most)


def suspects(graph: ModelGraph, recorded: Sequence[Recorded]) -> Reached:
    """Return the nodes that lead to all that is wrong, and to nothing that is right.

    With more than one fault there may be none: then those that lead to the first wrong value and to
    nothing that is right, or, if there are none either, to the first wrong value.

    Args:
        graph: With the gates fed, so that no path leads through them.
        recorded: In the order in which they are computed.
    """
    wrong = wrong_values(recorded)
    if not wrong:
        return frozenset()
    right = [graph.before(one.value) for one in recorded if one not in wrong]
    innocent = frozenset[int]().union(*right)
    first, *others = (graph.before(one.value) for one in wrong)
    common = first.intersection(*others)
    return common - innocent or first - innocent or first
