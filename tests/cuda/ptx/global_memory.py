"""Global memory: the host's own, of which only what was allocated may be touched.

One array spans everything from the first allocation to the last, so that threads may use several
allocations at once; each access is checked against the allocations first.
"""

import ctypes
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from tests.cuda.ptx.element_types import Value
from tests.cuda.ptx.errors import MemoryFault

_PAGE = 4096


class GlobalMemory:
    """Allocations that a kernel may use.

    Args:
        allocations: C-contiguous arrays; empty ones are ignored.
    """

    def __init__(self, allocations: Sequence[np.ndarray]) -> None:
        spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in allocations if a.nbytes)
        if not spans:
            spans = [(_PAGE, _PAGE)]
        self._allocations = tuple(allocations)  # kept alive
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._low = self._starts[0] // _PAGE * _PAGE
        length = -(-(max(self._ends) - self._low) // _PAGE) * _PAGE
        memory = (ctypes.c_uint8 * length).from_address(self._low)
        self._bytes = np.ctypeslib.as_array(memory)
        self._views: dict[np.dtype, np.ndarray] = {}

    def view(self, dtype: np.dtype) -> np.ndarray:
        """Return all of it as elements of a type."""
        if dtype not in self._views:
            self._views[dtype] = self._bytes.view(dtype)
        return self._views[dtype]

    def index(self, addresses: Value, itemsize: int, size: int, text: str) -> Value:
        """Return the element that each address is of `view`.

        Args:
            addresses: uint64.
            itemsize: Bytes of an element of the view.
            size: Bytes that are accessed at each address, which is a multiple of that.
            text: Of the instruction.

        Raises:
            MemoryFault: An access is not within one allocation, or misaligned.
        """
        addresses = np.asarray(addresses)
        if int(np.bitwise_or.reduce(addresses, axis=None)) & (size - 1):
            raise MemoryFault(f"misaligned access to global memory: {text}")
        if not self._in_one_allocation(int(addresses.min()), int(addresses.max()) + size):
            self._check_each(addresses, size, text)
        return (addresses - np.uint64(self._low)).view(np.int64) >> (itemsize.bit_length() - 1)

    def _in_one_allocation(self, low: int, high: int) -> bool:
        which = bisect_right(self._starts, low) - 1
        return which >= 0 and high <= self._ends[which]

    def _check_each(self, addresses: np.ndarray, size: int, text: str) -> None:
        addresses = np.atleast_1d(addresses)
        which = np.searchsorted(np.array(self._starts, np.uint64), addresses, "right") - 1
        ends = np.array(self._ends, np.uint64)[which]
        outside = (which < 0) | (addresses + np.uint64(size) > ends)
        if outside.any():
            raise MemoryFault(
                f"{int(outside.sum())} threads access {size} bytes of global memory "
                f"{self._describe(int(addresses[outside][0]))}: {text}"
            )

    def _describe(self, address: int) -> str:
        which = bisect_right(self._starts, address) - 1
        if which < 0:
            return f"at {address:#x}, in front of every allocation"
        length = self._ends[which] - self._starts[which]
        return f"at byte {address - self._starts[which]} of an allocation of {length}"
