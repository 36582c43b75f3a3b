"""cp.async: copies from global to shared memory that are waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.cuda.ptx.async_copies import Copies
from tests.cuda.ptx.element_types import U32
from tests.cuda.ptx.instructions.memory import safe
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes
from tests.cuda.ptx.operands import Mask, address_reader
from tests.cuda.ptx.syntax import Immediate

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine
    from tests.cuda.ptx.races import Access, RaceCheck

# Types that move so many bytes as they are.
UNITS: dict[int, np.dtype[Any]] = {
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    16: np.dtype(np.complex128),
}
CACHES = ("ca", "cg")


@decodes("cp")
def copy(decoding: Decoding) -> Step:
    modifiers = decoding.instruction.modifiers
    if modifiers == ("async", "commit_group"):
        return lambda machine, mask: machine.copies.commit(mask)
    if modifiers == ("async", "wait_group"):
        return _wait(_number(decoding, 0))
    if modifiers[:1] == ("async",) and {"shared", "global"} <= set(modifiers):
        return _issue(decoding)
    raise decoding.unsupported()


def _issue(decoding: Decoding) -> Step:
    """Copy `size` bytes, or the first of them and zeros for the rest."""
    if not set(decoding.instruction.modifiers) <= {"async", "shared", "global", *CACHES}:
        raise decoding.unsupported()
    size = _number(decoding, 2)
    target, source = (address_reader(decoding.operands[n], decoding.layout) for n in (0, 1))
    read_filled = (
        decoding.read(3, U32) if len(decoding.operands) > 3 else lambda registers: U32.type(size)
    )
    if size not in UNITS or len(decoding.operands) > 4:
        raise decoding.unsupported()
    text = decoding.text

    def step(machine: Machine, mask: Mask) -> None:
        lane = machine.chosen(mask)
        filled = machine.spread(read_filled(machine.registers))[lane]
        to = safe(target(machine.registers), mask)
        index = machine.spread(machine.shared.index(to, size, size, text))[lane]
        come_from = machine.spread(source(machine.registers))[lane]
        sources = _source_index(machine, come_from, filled, size, text)
        copies = Copies(lane, machine.copies.closed[lane], index, sources, filled, size)
        if machine.races is not None:
            machine.races.begin_copy(_access(machine.races, copies, text))
        if not machine.copies.late:
            _perform(machine, copies)
        if machine.copies.late or machine.races is not None:
            machine.copies.issue(copies)

    return step


def _source_index(
    machine: Machine, addresses: np.ndarray, filled: np.ndarray, size: int, text: str
) -> np.ndarray:
    """Return the elements that are copied; where nothing is, the address may be any."""
    reads = filled > 0
    if not reads.any():
        return np.full(len(addresses), -1)
    memory = machine.spaces["global"]
    index = memory.index(safe(addresses, reads), size, size, text)
    return np.where(reads, index, -1)


def _wait(open_groups: int) -> Step:
    def step(machine: Machine, mask: Mask) -> None:
        def done(copies: Copies) -> None:
            if machine.copies.late:
                _perform(machine, copies)
            if machine.races is not None:
                machine.races.end_copy(_access(machine.races, copies, ""))

        machine.copies.wait(open_groups, mask, done)

    return step


def _perform(machine: Machine, copies: Copies) -> None:
    unit = UNITS[copies.size]
    values = np.zeros(len(copies.lane), unit)
    reads = copies.source >= 0
    values[reads] = machine.spaces["global"].view(unit)[copies.source[reads]]
    if (copies.filled[reads] < copies.size).any():
        raw = values.view(np.uint8).reshape(-1, copies.size)
        raw[np.arange(copies.size) >= copies.filled[:, None]] = 0
    machine.shared.view(unit)[copies.target] = values


def _access(races: RaceCheck, copies: Copies, text: str) -> Access:
    each = copies.size // races.granule
    granules = copies.target[:, None] * each + np.arange(each)
    return races.access(granules, copies.lane, text)


def _number(decoding: Decoding, operand: int) -> int:
    value = decoding.operands[operand]
    if not isinstance(value, Immediate):
        raise decoding.unsupported()
    return value.bits
