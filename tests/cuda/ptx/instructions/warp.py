"""Exchange between the threads of a warp: shfl, vote, match, redux."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import BOOL, S32, U32, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, collective, decodes
from tests.cuda.ptx.operands import Mask, writer
from tests.cuda.ptx.syntax import Pair

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

WARP = 32
_LANE = np.arange(WARP, dtype=np.uint32)
_BIT = np.uint32(1) << _LANE

for _name in ("shfl", "vote", "match", "redux"):
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
    mode = decoding.choose_of("sync", "all", "any", "uni", "ballot")
    predicate = decoding.read(1, BOOL)
    write = decoding.write(U32 if mode == "ballot" else BOOL)

    def step(machine: Machine, mask: Mask) -> None:
        votes = machine.spread(predicate(machine.registers)).reshape(-1, WARP)
        present = np.ones_like(votes) if mask is None else mask.reshape(-1, WARP)
        write(machine, np.repeat(_tally(mode, votes, present), WARP), mask)

    return step


def _tally(mode: str, votes: np.ndarray, present: np.ndarray) -> np.ndarray:
    if mode == "ballot":
        ballot: np.ndarray = np.where(votes & present, _BIT, np.uint32(0)).sum(1, dtype=np.uint32)
        return ballot
    everybody: np.ndarray = (votes | ~present).all(1)
    anybody: np.ndarray = (votes & present).any(1)
    unanimous: np.ndarray = everybody | ~anybody
    return {"all": everybody, "any": anybody, "uni": unanimous}[mode]


@decodes("activemask")
def active_mask(decoding: Decoding) -> Step:
    write = decoding.write(U32)

    def step(machine: Machine, mask: Mask) -> None:
        present = machine.spread(np.True_ if mask is None else mask).reshape(-1, WARP)
        write(machine, np.repeat(_tally("ballot", present, present), WARP), mask)

    return step


@decodes("match")
def match(decoding: Decoding) -> Step:
    """Which lanes hold the same; `all`: everybody if all do, and nobody otherwise."""
    mode = decoding.choose_of("sync", "any", "all")
    target = decoding.operands[0]
    write = writer(target.first if isinstance(target, Pair) else target, U32)
    write_all = writer(target.second, BOOL) if isinstance(target, Pair) else None
    read = decoding.read(1, decoding.dtype)

    def step(machine: Machine, mask: Mask) -> None:
        values = machine.spread(read(machine.registers)).reshape(-1, WARP)
        present = machine.spread(np.True_ if mask is None else mask).reshape(-1, WARP)
        same = (values[:, :, None] == values[:, None, :]) & present[:, None, :]
        found = np.where(same, _BIT, np.uint32(0)).sum(2, dtype=np.uint32)
        everybody = _tally("ballot", present, present)[:, None]
        if mode == "all":
            found = np.where(found == everybody, found, np.uint32(0))
        write(machine, found.reshape(-1), mask)
        if write_all is not None:
            write_all(machine, (found == everybody).reshape(-1), mask)

    return step


@decodes("redux")
def reduce(decoding: Decoding) -> Step:
    operations = {
        "add": (np.add, 0),
        "min": (np.minimum, None),
        "max": (np.maximum, None),
        "and": (np.bitwise_and, -1),
        "or": (np.bitwise_or, 0),
        "xor": (np.bitwise_xor, 0),
    }
    mode = decoding.choose_of("sync", *operations)
    operation, neutral = operations[mode]
    dtype = S32 if decoding.type == "s32" else U32
    if neutral is None:
        neutral = np.iinfo(dtype).max if mode == "min" else np.iinfo(dtype).min
    read, write = decoding.read(1, dtype), decoding.write(dtype)
    absent = np.array(neutral % 2**32 if dtype is U32 else neutral).astype(dtype)

    def step(machine: Machine, mask: Mask) -> None:
        values = machine.spread(read(machine.registers))
        values = values if mask is None else np.where(mask, values, absent)
        result = operation.reduce(values.reshape(-1, WARP), axis=1, dtype=dtype)
        write(machine, np.repeat(result, WARP), mask)

    return step
