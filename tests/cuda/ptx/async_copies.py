"""cp.async: copies of which a thread knows that they are done only after it has waited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx.operands import Mask


@dataclass(frozen=True)
class Copies:
    """Copies from global to shared memory, one an element.

    Attributes:
        lane: Who issued it.
        group: Which of that lane's groups it is in.
        target, source: Element of shared and of global memory, by the type of `size` bytes.
        filled: Bytes that are copied; the others of `size` become 0.
        size: Bytes of each copy.
    """

    lane: np.ndarray
    group: np.ndarray
    target: np.ndarray
    source: np.ndarray
    filled: np.ndarray
    size: int

    def where(self, chosen: np.ndarray) -> Copies:
        """Return some of them."""
        arrays = (self.lane, self.group, self.target, self.source, self.filled)
        lane, group, target, source, filled = (array[chosen] for array in arrays)
        return Copies(lane, group, target, source, filled, self.size)


class AsyncCopies:
    """The copies of all lanes that have not been waited for.

    Args:
        late: Whether they are done when waited for, and not at once.
    """

    def __init__(self, lanes: int, *, late: bool) -> None:
        self.late = late
        self.closed = np.zeros(lanes, np.int64)
        self._open: list[Copies] = []

    def issue(self, copies: Copies) -> None:
        """Add copies to the group that each lane has open."""
        self._open.append(copies)

    def commit(self, mask: Mask) -> None:
        """Close the open group of each lane."""
        self.closed = self.closed + (1 if mask is None else mask)

    def wait(self, open_groups: int, mask: Mask, done: Callable[[Copies], None]) -> None:
        """Finish the copies of all but the newest groups of each lane.

        Args:
            open_groups: How many groups may be left.
            done: Called with the copies that are waited for, in the order of issue.
        """
        left = []
        for copies in self._open:
            ready = copies.group < self.closed[copies.lane] - open_groups
            if mask is not None:
                ready = ready & mask[copies.lane]
            if ready.all():
                done(copies)
                continue
            if ready.any():
                done(copies.where(ready))
                copies = copies.where(~ready)
            left.append(copies)
        self._open = left

    def keep(self, lanes: np.ndarray) -> None:
        """Forget the lanes that are not in the mask, and count the others anew."""
        self.closed = self.closed[lanes]
        number = np.cumsum(lanes) - 1
        left = [copies.where(lanes[copies.lane]) for copies in self._open]
        self._open = [
            Copies(number[c.lane], c.group, c.target, c.source, c.filled, c.size) for c in left
        ]
