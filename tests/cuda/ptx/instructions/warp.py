"""Exchange between the threads of a warp: shfl, vote, redux."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import BOOL, U32, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, collective, decodes
from tests.cuda.ptx.operands import Mask, writer
from tests.cuda.ptx.syntax import Pair

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

WARP = 32
_LANE = np.arange(WARP, dtype=np.uint32)
_BIT = np.uint32(1) << _LANE

for _name in ("shfl", "vote", "redux"):
    collective(_name, lambda instruction: instruction.operands[-1])


@decodes("shfl")
def shuffle(decoding: Decoding) -> Step:
    mode = decoding.choose_of("sync", "idx", "up", "down", "bfly")
    target = decoding.operands[0]
    value_target = target.first if isinstance(target, Pair) else target
    write = writer(value_target, U32)
    write_inside = writer(target.second, BOOL) if isinstance(target, Pair) else None
    value, by, clamp = (decoding.read(number, U32) for number in (1, 2, 3))

    def step(machine: Machine, mask: Mask) -> None:
        registers = machine.registers
        lane = np.arange(machine.lanes, dtype=np.uint32) & np.uint32(31)
        source, inside = _source_lane(mode, lane, by(registers), clamp(registers))
        at = (np.arange(machine.lanes) & ~31) + source
        given = machine.spread(value(registers))
        if mask is not None:
            # What a thread that takes no part holds is not defined.
            given = np.where(mask, given, np.uint32(0xFFFFFFFF))
        write(machine, given[at], mask)
        if write_inside is not None:
            write_inside(machine, inside, mask)

    return step


def _source_lane(mode: str, lane: Value, by: Value, clamp: Value) -> tuple[Value, Value]:
    """Return which lane each one reads, and whether that is within its segment."""
    by = by & np.uint32(31)
    segment = (clamp >> np.uint32(8)) & np.uint32(31)
    limit = clamp & np.uint32(31)
    last = (lane & segment) | (limit & ~segment)
    if mode == "up":
        source = lane.astype(np.int64) - by
        inside = source >= last
    else:
        if mode == "down":
            source = lane.astype(np.int64) + by
        elif mode == "bfly":
            source = (lane ^ by).astype(np.int64)
        else:
            source = ((lane & segment) | (by & ~segment)).astype(np.int64)
        inside = source <= last
    return np.where(inside, source, lane), inside


@decodes("vote")
def vote(decoding: Decoding) -> Step:
    mode = decoding.choose_of("sync", "all", "any", "ballot")
    predicate = decoding.read(1, BOOL)
    members = decoding.read(2, U32)
    write = decoding.write(U32 if mode == "ballot" else BOOL)

    def step(machine: Machine, mask: Mask) -> None:
        votes = machine.spread(predicate(machine.registers)).reshape(-1, 1, WARP)
        groups = _groups(machine, members(machine.registers), mask)
        write(machine, _for_each_lane(_tally(mode, votes, groups)), mask)

    return step


def _groups(machine: Machine, members: Value, mask: Mask) -> np.ndarray:
    """Return with whom each lane acts, [warps, 32, 32], or [warps, 1, 32] if all name the same."""
    present = machine.spread(np.True_ if mask is None else mask).reshape(-1, 1, WARP)
    members = members.reshape(-1, WARP if members.ndim else 1, 1)
    together: np.ndarray = ((members & _BIT) != 0) & present
    return together


def _for_each_lane(values: np.ndarray) -> np.ndarray:
    """Return [lanes] of [warps, 32] or [warps, 1]."""
    return np.broadcast_to(values, (len(values), WARP)).reshape(-1)


def _tally(mode: str, votes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    if mode == "ballot":
        ballot: np.ndarray = np.where(votes & groups, _BIT, np.uint32(0)).sum(2, dtype=np.uint32)
        return ballot
    decided: np.ndarray = (votes | ~groups).all(2) if mode == "all" else (votes & groups).any(2)
    return decided


@decodes("redux")
def add_up(decoding: Decoding) -> Step:
    if decoding.instruction.modifiers != ("sync", "add", "u32"):
        raise decoding.unsupported()
    read, members, write = decoding.read(1, U32), decoding.read(2, U32), decoding.write(U32)

    def step(machine: Machine, mask: Mask) -> None:
        values = machine.spread(read(machine.registers)).reshape(-1, 1, WARP)
        groups = _groups(machine, members(machine.registers), mask)
        sums = np.where(groups, values, np.uint32(0)).sum(2, dtype=np.uint32)
        write(machine, _for_each_lane(sums), mask)

    return step
