"""The barrier of a warp. That of a block is the scheduler's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.instructions.registry import Decoding, Step, collective, decodes
from tests.cuda.ptx.operands import Mask

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

collective("bar", lambda instruction: instruction.operands[0])


@decodes("bar")
def barrier_of_warp(decoding: Decoding) -> Step:
    if decoding.instruction.modifiers != ("warp", "sync"):
        raise decoding.unsupported()

    def step(machine: Machine, mask: Mask) -> None:
        if machine.races is not None:
            warps = machine.live if mask is None else mask
            machine.races.synchronize_warps(np.any(warps.reshape(-1, 32), axis=1))

    return step
