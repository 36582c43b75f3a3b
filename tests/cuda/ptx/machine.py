"""Threads that run together: those of several blocks, each thread an element of every register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.async_copies import AsyncCopies
from tests.cuda.ptx.element_types import DTYPES, UNSIGNED, Value
from tests.cuda.ptx.global_memory import GlobalMemory
from tests.cuda.ptx.layout import Layout
from tests.cuda.ptx.operands import Mask
from tests.cuda.ptx.races import RaceCheck
from tests.cuda.ptx.sized_memory import OwnedMemory, ParamMemory, SizedMemory
from tests.cuda.ptx.syntax import Entry

if TYPE_CHECKING:
    from tests.cuda.ptx.program import Program

WARP = 32
Dim3 = tuple[int, int, int]
Memory = GlobalMemory | SizedMemory


@dataclass(frozen=True)
class Checks:
    """What is looked for beside accesses outside of memory and divergence.

    Attributes:
        races: Whether accesses to shared memory are checked for an order between them.
        late_copies: Whether cp.async copies when it is waited for, and not when it is issued.
    """

    races: bool = False
    late_copies: bool = False


@dataclass(frozen=True)
class Launch:
    """A kernel's launch."""

    grid: Dim3
    block: Dim3
    shared_bytes: int
    params: bytes
    memory: GlobalMemory
    checks: Checks = Checks()

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def lanes(self) -> int:
        """Threads of a block in whole warps: those beyond `threads` never run."""
        return -(-self.threads // WARP) * WARP


class Machine:
    """State of the threads of some blocks of a launch, called lanes here.

    Attributes:
        registers: Values [lanes] by the register's index.
        live: Whether each lane has still to run.
        exists: Whether it is a thread at all.
        block_of: The block of each lane, from 0.
    """

    def __init__(self, program: Program, launch: Launch, blocks: range) -> None:
        layout = program.layout
        self.launch = launch
        self.blocks = len(blocks)
        self.exists = np.tile(np.arange(launch.lanes) < launch.threads, self.blocks)
        self.live = self.exists.copy()
        self.block_of = np.repeat(np.arange(self.blocks), launch.lanes)
        self.registers = self._registers(program.entry, layout, blocks)
        shared_bytes = layout.static_shared_bytes + launch.shared_bytes
        self.shared = OwnedMemory("shared", shared_bytes, self.block_of)
        self.local = OwnedMemory("local", layout.local_bytes, np.arange(self.lanes))
        self.spaces: dict[str, Memory] = {
            "global": launch.memory,
            "param": ParamMemory(launch.params),
            "shared": self.shared,
            "local": self.local,
        }
        self.copies = AsyncCopies(self.lanes, late=launch.checks.late_copies)
        self.races: RaceCheck | None = None
        if launch.checks.races:
            self.races = RaceCheck(self.blocks, launch.lanes, shared_bytes, program.granule)

    @property
    def lanes(self) -> int:
        """How many there are, those included that do not run any more."""
        return len(self.live)

    def chosen(self, mask: Mask) -> np.ndarray:
        """Return the indices of the lanes in a mask."""
        return np.arange(self.lanes) if mask is None else np.flatnonzero(mask)

    def spread(self, value: Value) -> np.ndarray:
        """Return a value with an element a lane."""
        if value.ndim == 0:
            value = np.broadcast_to(value, self.lanes)
        array: np.ndarray = value
        return array

    def live_blocks(self) -> np.ndarray:
        """Return whether each block has a lane that has still to run."""
        is_live: np.ndarray = self.live.reshape(self.blocks, -1).any(1)
        return is_live

    def keep(self, blocks: np.ndarray) -> np.ndarray:
        """Forget all blocks but those of a mask, and return the mask of the lanes that are left."""
        lanes = np.repeat(blocks, self.launch.lanes)
        self.registers = [value if value.ndim == 0 else value[lanes] for value in self.registers]
        self.live, self.exists = self.live[lanes], self.exists[lanes]
        self.blocks = int(blocks.sum())
        self.block_of = np.repeat(np.arange(self.blocks), self.launch.lanes)
        self.shared.keep(blocks, self.block_of)
        self.local.keep(lanes, np.arange(self.lanes))
        self.copies.keep(lanes)
        if self.races is not None:
            self.races.keep(blocks)
        return lanes

    def _registers(self, entry: Entry, layout: Layout, blocks: range) -> list[Value]:
        registers = _unwritten(entry.register_types)
        values = _special_values(self.launch, blocks)
        # A register that nobody asks for has no index; indices are in the order of asking.
        registers.extend(values[name] for name in layout.specials)
        return registers


def _unwritten(types: Sequence[str]) -> list[Value]:
    """Return registers that nobody has written: all ones, NaN among the floats."""
    ones: dict[str, Value] = {"pred": np.False_}
    for type_ in set(types) - {"pred"}:
        size = DTYPES[type_].itemsize
        ones[type_] = UNSIGNED[size].type(2 ** (8 * size) - 1)
    return [ones[type_] for type_ in types]


def _special_values(launch: Launch, blocks: range) -> dict[str, Value]:
    thread = np.tile(np.arange(launch.lanes, dtype=np.uint32), len(blocks))
    block = np.repeat(np.arange(blocks.start, blocks.stop, dtype=np.uint32), launch.lanes)
    return {
        **_coordinates("tid", thread, launch.block),
        **_coordinates("ctaid", block, launch.grid),
        **_sizes("ntid", launch.block),
        **_sizes("nctaid", launch.grid),
    }


def _coordinates(name: str, index: np.ndarray, size: Sequence[int]) -> dict[str, np.ndarray]:
    x, y, _ = (np.uint32(extent) for extent in size)
    return {f"%{name}.x": index % x, f"%{name}.y": index // x % y, f"%{name}.z": index // x // y}


def _sizes(name: str, size: Sequence[int]) -> dict[str, np.generic]:
    return {f"%{name}.{axis}": np.uint32(extent) for axis, extent in zip("xyz", size, strict=True)}
