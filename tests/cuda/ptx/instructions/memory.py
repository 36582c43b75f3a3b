"""ld and st, of one element or a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import UNSIGNED, Value
from tests.cuda.ptx.errors import Unsupported
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes
from tests.cuda.ptx.layout import WINDOW_SHIFT, WINDOWS
from tests.cuda.ptx.operands import Mask, Read, address_reader, elements, reader, writer
from tests.cuda.ptx.syntax import Operand

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine, Memory
    from tests.cuda.ptx.races import Access, RaceCheck

SPACES = ("global", "shared", "local", "param")
VECTORS = {"v2": 2, "v4": 4}
_WINDOW_SPACES = {window >> WINDOW_SHIFT: space for space, window in WINDOWS.items()}

Where = Callable[["Machine", Mask], "tuple[Memory, str, Value]"]
"""Returns the memory, its space and the addresses in it."""


@decodes("ld")
def load(decoding: Decoding) -> Step:
    # nc: by a cache that is not coherent. All accesses here are done at once.
    options, dtype = decoding.options(*SPACES, *VECTORS, "nc"), decoding.dtype
    targets = elements(decoding.operands[0])
    _require_length(decoding, options, targets)
    writes = [writer(target, dtype) for target in targets]
    where = locate(decoding, options, decoding.operands[1])
    itemsize, size, text = dtype.itemsize, dtype.itemsize * len(targets), decoding.text

    def step(machine: Machine, mask: Mask) -> None:
        memory, space, addresses = where(machine, mask)
        index = memory.index(addresses, itemsize, size, text)
        if space == "shared" and machine.races is not None:
            machine.races.read(shared_access(machine, machine.races, addresses, size, mask, text))
        view = memory.view(dtype)
        for number, write in enumerate(writes):
            write(machine, view.take(index + number if number else index), mask)

    return step


@decodes("st")
def store(decoding: Decoding) -> Step:
    options, dtype = decoding.options(*SPACES, *VECTORS), decoding.dtype
    sources = elements(decoding.operands[1])
    _require_length(decoding, options, sources)
    reads = [reader(source, dtype, decoding.layout) for source in sources]
    where = locate(decoding, options, decoding.operands[0])
    itemsize, size, text = dtype.itemsize, dtype.itemsize * len(sources), decoding.text

    def step(machine: Machine, mask: Mask) -> None:
        memory, space, addresses = where(machine, mask)
        index = machine.spread(memory.index(addresses, itemsize, size, text))
        if space == "shared" and machine.races is not None:
            machine.races.write(shared_access(machine, machine.races, addresses, size, mask, text))
        view = memory.view(dtype)
        index = index if mask is None else index[mask]
        for number, read in enumerate(reads):
            value = read(machine.registers)
            view[index + number] = value if mask is None or value.ndim == 0 else value[mask]

    return step


def locate(decoding: Decoding, options: set[str], operand: Operand) -> Where:
    """Return what finds the memory of an access; without a space, by the addresses themselves."""
    read = address_reader(operand, decoding.layout)
    spaces = options & set(SPACES)
    if not spaces:
        return _generic(read, decoding.text)
    (space,) = spaces

    def where(machine: Machine, mask: Mask) -> tuple[Memory, str, Value]:
        return machine.spaces[space], space, safe(read(machine.registers), mask)

    return where


def safe(addresses: Value, mask: Mask) -> Value:
    """Let the threads that are not in the mask have the address of one that is."""
    if mask is None or addresses.ndim == 0:
        return addresses
    return np.where(mask, addresses, addresses[mask.argmax()])


def shared_access(
    machine: Machine, races: RaceCheck, addresses: Value, size: int, mask: Mask, text: str
) -> Access:
    """Describe an access to shared memory to the race check."""
    granule = races.granule
    first = machine.spread(machine.shared.index(addresses, granule, size, text))
    lane = machine.chosen(mask)
    granules = first[lane][:, None] + np.arange(size // granule)
    return races.access(granules, lane, text)


def _generic(read: Read, text: str) -> Where:
    shift, low = np.uint64(WINDOW_SHIFT), np.uint64((1 << WINDOW_SHIFT) - 1)

    def where(machine: Machine, mask: Mask) -> tuple[Memory, str, Value]:
        addresses = np.asarray(safe(read(machine.registers), mask))
        windows = np.unique(addresses >> shift)
        if len(windows) > 1:
            raise Unsupported(f"one access to several spaces: {text}")
        space = _WINDOW_SPACES.get(int(windows[0]), "global")
        return machine.spaces[space], space, addresses & low

    return where


def _require_length(decoding: Decoding, options: set[str], operands: tuple[Operand, ...]) -> None:
    length = sum(VECTORS.get(option, 0) for option in options) or 1
    if len(operands) != length or decoding.dtype.itemsize not in UNSIGNED:
        raise decoding.unsupported()
