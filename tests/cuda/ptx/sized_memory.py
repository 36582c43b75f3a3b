"""Shared and local memory and parameters: addresses begin at 0, and end where the size says."""

import numpy as np

from tests.cuda.ptx.element_types import Value
from tests.cuda.ptx.errors import MemoryFault

_ALIGNMENT = 16


class SizedMemory:
    """Memory whose addresses begin at 0.

    Args:
        space: Its name in messages.
        size: Its bytes; of each owner, if there are several.
    """

    def __init__(self, space: str, size: int) -> None:
        self.space = space
        self.size = size
        self._stride = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        self._rows = np.full((1, self._stride), 0xFF, np.uint8)
        self._base: Value = np.int64(0)
        self._views: dict[np.dtype, np.ndarray] = {}

    def view(self, dtype: np.dtype) -> np.ndarray:
        """Return all of it as elements of a type."""
        if dtype not in self._views:
            self._views[dtype] = self._rows.reshape(-1).view(dtype)
        return self._views[dtype]

    def index(self, addresses: Value, itemsize: int, size: int, text: str) -> Value:
        """Return the element that each thread's address is of `view`; see GlobalMemory.index."""
        addresses = np.asarray(addresses)
        if int(np.bitwise_or.reduce(addresses, axis=None)) & (size - 1):
            raise MemoryFault(f"misaligned access to {self.space} memory: {text}")
        last = int(addresses.max())
        if last + size > self.size:
            raise MemoryFault(
                f"access to bytes {last}..{last + size - 1} of {self.size} bytes "
                f"of {self.space} memory: {text}"
            )
        return (addresses.view(np.int64) + self._base) >> (itemsize.bit_length() - 1)


class ParamMemory(SizedMemory):
    """The parameters of a kernel."""

    def __init__(self, params: bytes) -> None:
        super().__init__("param", len(params))
        self._rows[0, : len(params)] = np.frombuffer(params, np.uint8)


class OwnedMemory(SizedMemory):
    """Shared memory of each block, or local memory of each thread; NaN where nothing was written.

    Args:
        owner: The owner of each thread, ascending.
    """

    def __init__(self, space: str, size: int, owner: np.ndarray) -> None:
        super().__init__(space, size)
        self._rows = np.full((int(owner[-1]) + 1, self._stride), 0xFF, np.uint8)
        self._base = owner.astype(np.int64) * self._stride

    def keep(self, owners: np.ndarray, owner: np.ndarray) -> None:
        """Forget all owners but those; `owner` is the new one of each thread that is left."""
        self._rows = self._rows[owners]
        self._base = owner.astype(np.int64) * self._stride
        self._views = {}
