"""atom and red. Threads of the same address take turns, in the order of their numbers."""

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
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, a: a,
    "cas": lambda old, compare, a: np.where(old == compare, a, old),
    "inc": lambda old, limit: np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1)),
}
ORDERS = ("relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys")


@decodes("atom", "red")
def atomic(decoding: Decoding) -> Step:
    returns = decoding.instruction.name == "atom"
    options = decoding.options(*SPACES, *ORDERS, *OPERATIONS)
    if decoding.type not in ("u32", "s32", "b32", "u64", "s64", "b64", "f32", "f64"):
        raise decoding.unsupported()
    (operation,) = (OPERATIONS[option] for option in options if option in OPERATIONS)
    dtype, text = decoding.dtype, decoding.text
    first = 1 if returns else 0
    where = locate(decoding, options, decoding.operands[first])
    reads = [decoding.read(n, dtype) for n in range(first + 1, len(decoding.operands))]
    write = decoding.write(dtype) if returns else None

    def step(machine: Machine, mask: Mask) -> None:
        memory, space, addresses = where(machine, mask)
        index = machine.spread(memory.index(addresses, dtype.itemsize, dtype.itemsize, text))
        if space == "shared" and machine.races is not None:
            machine.races.update(
                shared_access(machine, machine.races, addresses, dtype.itemsize, mask, text)
            )
        lanes = machine.chosen(mask)
        values = [machine.spread(read(machine.registers))[lanes] for read in reads]
        old = _take_turns(memory.view(dtype), index[lanes], operation, values)
        if write is not None:
            whole = np.zeros(machine.lanes, dtype)
            whole[lanes] = old
            write(machine, whole, mask)

    return step


def _take_turns(
    view: np.ndarray, index: np.ndarray, operation: Callable[..., Value], values: list[np.ndarray]
) -> np.ndarray:
    """Apply an operation at each index; return what was there before."""
    old = np.empty(len(index), view.dtype)
    turns = _turns(index)
    for turn in range(int(turns.max()) + 1):
        now = np.flatnonzero(turns == turn)
        old[now] = view[index[now]]
        view[index[now]] = operation(old[now], *[value[now] for value in values])
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
