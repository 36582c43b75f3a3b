"""atom. Threads of the same address take turns, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import Value
from tests.cuda.ptx.instructions.memory import SPACES, locate, shared_access
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes
from tests.cuda.ptx.operands import Mask

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": lambda old, a: old + a,
    "min": np.minimum,
    "max": np.maximum,
}


@decodes("atom")
def atomic(decoding: Decoding) -> Step:
    options = decoding.options(*SPACES, *OPERATIONS)
    if decoding.type not in ("u32", "s32", "u64", "f32"):
        raise decoding.unsupported()
    (operation,) = (OPERATIONS[option] for option in options if option in OPERATIONS)
    dtype, text = decoding.dtype, decoding.text
    where = locate(decoding, options, decoding.operands[1])
    read, write = decoding.read(2, dtype), decoding.write(dtype)

    def step(machine: Machine, mask: Mask) -> None:
        memory, space, addresses = where(machine, mask)
        index = machine.spread(memory.index(addresses, dtype.itemsize, dtype.itemsize, text))
        if space == "shared" and machine.races is not None:
            machine.races.update(
                shared_access(machine, machine.races, addresses, dtype.itemsize, mask, text)
            )
        lanes = machine.chosen(mask)
        values = machine.spread(read(machine.registers))[lanes]
        old = np.zeros(machine.lanes, dtype)
        old[lanes] = _take_turns(memory.view(dtype), index[lanes], operation, values)
        write(machine, old, mask)

    return step


def _take_turns(
    view: np.ndarray, index: np.ndarray, operation: Callable[..., Value], values: np.ndarray
) -> np.ndarray:
    """Apply an operation at each index; return what was there before."""
    old = np.empty(len(index), view.dtype)
    turns = _turns(index)
    for turn in range(int(turns.max()) + 1):
        now = np.flatnonzero(turns == turn)
        old[now] = view[index[now]]
        view[index[now]] = operation(old[now], values[now])
    return old


def _turns(index: np.ndarray) -> np.ndarray:
    """Return how many equal elements are in front of each."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    position = np.arange(len(index))
    start = np.maximum.accumulate(np.where(is_first, position, 0))
    turns = np.empty(len(index), np.int64)
    turns[order] = position - start
    return turns
