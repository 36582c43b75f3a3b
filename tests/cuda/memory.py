"""Memory that kernels work on, with guards around what they write."""

from typing import Protocol

import numpy as np

GUARD_BYTES = 256
"""Also the alignment of what lies between two guards: that of the CUDA runtime's allocations."""
GUARD = 0xA5
UNWRITTEN = 0x5A
"""A number of no meaning in every type; as an index far beyond everything."""


class Memory(Protocol):
    """Where a kernel's tensors are."""

    def put(self, data: np.ndarray) -> int:
        """Copy bytes there and return their address, which is kept until `clear`."""
        ...

    def get(self, address: int, size: int) -> np.ndarray:
        """Copy bytes from there."""
        ...

    def clear(self) -> None:
        """Free everything."""
        ...


class HostMemory:
    """The process's own, for the emulator: `blocks`, each of exactly its size."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def put(self, data: np.ndarray) -> int:
        block = np.array(data, copy=True)
        self.blocks.append(block)
        return int(block.ctypes.data)

    def get(self, address: int, size: int) -> np.ndarray:
        if size == 0:
            return np.empty(0, np.uint8)
        (block,) = (b for b in self.blocks if b.ctypes.data <= address < b.ctypes.data + b.nbytes)
        first = address - block.ctypes.data
        return block[first : first + size].copy()

    def clear(self) -> None:
        self.blocks.clear()


class Guarded:
    """Bytes that nobody has written yet, between guards.

    With `guards` False there are none: for a sanitizer that sees every access beyond the end.
    """

    def __init__(self, memory: Memory, size: int, *, guards: bool) -> None:
        self._memory = memory
        self._size = size
        self._guard = GUARD_BYTES if guards else 0
        guard = np.full(self._guard, GUARD, np.uint8)
        body = np.full(size, UNWRITTEN, np.uint8)
        self.address = memory.put(np.concatenate([guard, body, guard])) + self._guard

    def read(self) -> np.ndarray:
        """Return the bytes between the guards."""
        return self._memory.get(self.address, self._size)

    def find_damage(self) -> str | None:
        """Say on which side somebody wrote beyond the bytes, or return None."""
        everything = self._memory.get(self.address - self._guard, self._size + 2 * self._guard)
        wrong = np.flatnonzero(everything[: self._guard] != GUARD)
        if wrong.size:
            return f"{self._guard - int(wrong[-1])} bytes before the start were written to"
        wrong = np.flatnonzero(everything[self._guard + self._size :] != GUARD)
        return f"byte {int(wrong[0])} behind the end was written to" if wrong.size else None
