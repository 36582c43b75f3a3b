"""Runs the lanes of a machine: always those that are furthest behind, so that they meet again.

A group is a set of lanes at the same position. Groups wait at a barrier for the rest of their
block, and at an instruction of the warp for the rest of its members.
"""

from typing import Literal

import numpy as np

from tests.cuda.ptx.errors import Divergence, Runaway
from tests.cuda.ptx.machine import WARP, Machine
from tests.cuda.ptx.operands import Mask, Read
from tests.cuda.ptx.program import Barrier, Branch, Exit, Program

Group = np.ndarray | Literal[False] | None

MAX_RUNS = 2_000_000
"""Runs from label to label until a kernel is said not to end."""


def run(program: Program, machine: Machine) -> None:
    """Run all lanes to their end."""
    Scheduler(program, machine).run()


class Scheduler:
    """Where the lanes of a machine are.

    Attributes:
        groups: Lanes that can run, by position.
        parked: Lanes at an instruction of the warp whose members are not all there, by position.
        waiting: Lanes at a barrier, by position.
    """

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program = program
        self.machine = machine
        self.groups: dict[int, Mask] = {0: None if machine.live.all() else machine.live.copy()}
        self.parked: dict[int, np.ndarray] = {}
        self.waiting: dict[int, np.ndarray] = {}

    def run(self) -> None:
        for _ in range(MAX_RUNS):
            if not self.groups:
                return self._require_nobody_left()
            position = min(self.groups)
            self._advance(position, self.groups.pop(position))
        raise Runaway(f"The kernel does not end: {MAX_RUNS} runs from label to label.")

    def _advance(self, position: int, mask: Mask) -> None:
        """Run a group to the next control or label."""
        end = self.program.stops[position]
        if position in self.program.controls:
            return self._control(position, mask)
        if mask is None or _in_whole_warps(mask):
            for step in self.program.steps[position:end]:
                step(self.machine, mask)
        else:
            mask = self._run_parts_of_warps(position, end, mask)
            if not mask.any():
                return None
        return self._continue(end, mask)

    def _run_parts_of_warps(self, position: int, end: int, mask: np.ndarray) -> np.ndarray:
        """Run a group; return the lanes that came to the end."""
        for at in range(position, end):
            if at in self.program.members:
                mask = mask | self.parked.pop(at, False)
                complete = self._complete(at, mask)
                if not complete.all():
                    self.parked[at] = mask & ~complete
                mask = mask & complete
            if mask.any():
                self.program.steps[at](self.machine, mask)
        return mask

    def _complete(self, at: int, mask: np.ndarray) -> np.ndarray:
        """Return for each lane whether all members of its warp are in the mask, itself included."""
        members = self.program.members[at](self.machine.registers)
        members = self.machine.spread(members).reshape(-1, WARP)
        missing = members & ~_bits(mask)[:, None] & _bits(self.machine.exists)[:, None]
        is_member = (members >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1)
        complete: np.ndarray = ((missing == 0) & (is_member == 1)).reshape(-1)
        either: np.ndarray = complete | ~mask
        return either

    def _continue(self, position: int, mask: Mask) -> None:
        """Let lanes go on at a position, with those that are there."""
        if position >= len(self.program.steps):
            return self._exit(mask)
        there = self.groups.get(position, False)
        if there is None or mask is None:
            self.groups[position] = None
            return None
        mask = mask | there
        self.groups[position] = None if mask.all() else mask
        return None

    def _control(self, position: int, mask: Mask) -> None:
        control = self.program.controls[position]
        if isinstance(control, Branch):
            self._branch(control, position, mask)
        elif isinstance(control, Exit):
            self._leave(control, position, mask)
        elif isinstance(control, Barrier):
            self._arrive(position, mask)

    def _branch(self, branch: Branch, position: int, mask: Mask) -> None:
        taken, others = self._split(branch.guard, mask)
        if taken is not False:
            self._continue(branch.target, taken)
        if others is not False:
            self._continue(position + 1, others)

    def _leave(self, control: Exit, position: int, mask: Mask) -> None:
        taken, others = self._split(control.guard, mask)
        if others is not False:
            self._continue(position + 1, others)
        if taken is not False:
            self._exit(taken)

    def _split(self, guard: Read | None, mask: Mask) -> tuple[Group, Group]:
        """Divide a group; False stands for nobody."""
        if guard is None:
            return mask, False
        value = guard(self.machine.registers)
        if value.ndim == 0:
            return (mask, False) if value else (False, mask)
        taken = value if mask is None else value & mask
        if not taken.any():
            return False, mask
        others = ~value if mask is None else ~value & mask
        if not others.any():
            return mask, False
        return taken, others

    def _exit(self, mask: Mask) -> None:
        live = self.machine.live
        live[...] = False if mask is None else live & ~mask
        self._release_blocks()
        blocks = self.machine.live_blocks()
        if 0 < blocks.sum() <= len(blocks) // 2:
            self._forget(blocks)

    def _forget(self, blocks: np.ndarray) -> None:
        """Go on without the blocks that are done."""
        lanes = self.machine.keep(blocks)
        for stopped in (self.parked, self.waiting):
            stopped.update({position: mask[lanes] for position, mask in stopped.items()})
        for position, mask in self.groups.items():
            left = None if mask is None else mask[lanes]
            self.groups[position] = None if left is None or left.all() else left

    def _arrive(self, position: int, mask: Mask) -> None:
        if mask is None:
            self._synchronize(np.ones(self.machine.blocks, bool))
            return self._continue(position + 1, None)
        self.waiting[position] = mask | self.waiting.get(position, False)
        return self._release_blocks()

    def _release_blocks(self) -> None:
        """Let those blocks go on of which every live lane waits."""
        if not self.waiting:
            return
        arrived = np.logical_or.reduce(list(self.waiting.values()))
        by_block = arrived.reshape(self.machine.blocks, -1)
        live = self.machine.live.reshape(by_block.shape)
        ready = (by_block == live).all(1) & by_block.any(1)
        if ready.any():
            self._require_one_barrier_for_all(ready)
            self._synchronize(ready)
            self._pass_barriers(np.repeat(ready, by_block.shape[1]))

    def _pass_barriers(self, lanes: np.ndarray) -> None:
        for position, mask in list(self.waiting.items()):
            if (mask & lanes).any():
                self._continue(position + 1, mask & lanes)
            self.waiting[position] = mask & ~lanes
            if not self.waiting[position].any():
                del self.waiting[position]

    def _require_one_barrier_for_all(self, ready: np.ndarray) -> None:
        machine = self.machine
        exited = (machine.exists & ~machine.live).reshape(machine.blocks, -1).any(1)
        if (exited & ready).any():
            raise Divergence("A block waits at a barrier, and some of its threads have ended.")
        at = [mask.reshape(machine.blocks, -1).any(1) for mask in self.waiting.values()]
        if (np.sum(at, axis=0)[ready] > 1).any():
            raise Divergence("Threads of one block wait at different barriers.")

    def _synchronize(self, blocks: np.ndarray) -> None:
        if self.machine.races is not None:
            self.machine.races.synchronize_blocks(blocks)

    def _require_nobody_left(self) -> None:
        if not self.machine.live.any():
            return
        for position, mask in self.parked.items():
            text = self.program.entry.instructions[position].text
            lanes = np.flatnonzero(mask) % self.machine.launch.lanes
            raise Divergence(
                f"Threads {lanes[:8].tolist()} wait for the other members of their warp, "
                f"which never come: {text}"
            )
        raise Divergence("Threads wait at a barrier that others of their block never reach.")


def _in_whole_warps(mask: np.ndarray) -> bool:
    warps = mask.reshape(-1, WARP)
    return bool((warps.all(1) == warps.any(1)).all())


def _bits(mask: np.ndarray) -> np.ndarray:
    """Return the lanes of each warp as bits, uint32 [warps]."""
    return np.packbits(mask.reshape(-1, WARP), axis=1, bitorder="little").view("<u4").reshape(-1)
