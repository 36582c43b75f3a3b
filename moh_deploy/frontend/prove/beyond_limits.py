"""Tell limits of a trace from those of the model, by trying sizes beyond them.

Torch limits a size wherever it decides something by it: windows of which there must be two, an `if`
whose branches compute the same. Where the original model and what was traced of it agree beyond a
limit, that is none of the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moh_deploy.frontend.limits import Ranges

Disagreement = Callable[[str, int], "str | None"]
"""Runs both at a size of a dimension, those of others as in the example. Says what is in the way;
None if they agree."""


@dataclass(frozen=True)
class TriedLimits:
    """The sizes that a program is good for, as far as runs show it.

    Attributes:
        ranges: Smallest and largest size of each dimension that stays limited.
        reasons: What is in the way beyond a limit that stays, by dimension.
    """

    ranges: Ranges
    reasons: Mapping[str, str]


def try_limits(
    ranges: Mapping[str, tuple[int, int | None]],
    disagreement: Disagreement,
    retraced: Callable[[str, int], Ranges | None],
) -> TriedLimits:
    """Lift each limit as far as the original and the program agree beyond it.

    Args:
        ranges: What the trace says.
        retraced: Returns the ranges of another trace, whose example is of a given size; None where
            there is none. A single run beyond an upper limit says little of all larger ones.
    """
    tried: Ranges = {}
    reasons: dict[str, str] = {}
    for name, (least, most) in ranges.items():
        found: list[str] = []
        smallest = _smallest(name, least, disagreement, found)
        largest = None if most is None else _largest(name, most, disagreement, retraced, found)
        if smallest > 1 or largest is not None:
            tried[name] = (smallest, largest)
        if found:
            reasons[name] = "; ".join(found)
    return TriedLimits(tried, reasons)


def _smallest(name: str, least: int, disagreement: Disagreement, reasons: list[str]) -> int:
    """Go down in steps that double, and from one that is too far again in small ones."""
    step, why = 1, None
    while least > 1:
        size = max(least - step, 1)
        found = disagreement(name, size)
        if found is None:
            least, step = size, 2 * step
        elif step > 1:
            step = 1
        else:
            why = found
            break
    if why is not None:
        reasons.append(why)
    return least


def _largest(
    name: str,
    most: int,
    disagreement: Disagreement,
    retraced: Callable[[str, int], Ranges | None],
    reasons: list[str],
) -> int | None:
    """Go up to four times the limit in the same way, and ask another trace how far it reaches."""
    largest, step = most, 1
    while largest < 4 * most:
        size = min(largest + step, 4 * most)
        why = disagreement(name, size)
        if why is None:
            largest, step = size, 2 * step
        elif step > 1:
            step = 1
        else:
            reasons.append(why)
            return largest
    beyond = retraced(name, largest)
    least, further = (None, None) if beyond is None else beyond.get(name, (1, None))
    if least is None or least > most + 2:  # the next one was tried, and may be all that is between
        reasons.append(f"larger sizes than {name}={largest} were not tried")
        return largest
    return further
