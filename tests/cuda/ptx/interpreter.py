"""Runs kernels of a PTX module on the CPU."""

from collections.abc import Iterator, Sequence

import numpy as np

from tests.cuda.ptx import instructions  # noqa: F401  (fills the registry)
from tests.cuda.ptx.errors import PtxError
from tests.cuda.ptx.global_memory import GlobalMemory
from tests.cuda.ptx.machine import Checks, Dim3, Launch, Machine
from tests.cuda.ptx.parser import Module
from tests.cuda.ptx.program import Program, decode
from tests.cuda.ptx.scheduler import run

NO_CHECKS = Checks()
MAX_LANES = 8192
"""Threads that run at once, so that memory stays bounded."""


class Interpreter:
    """The kernels of a module.

    Args:
        text: PTX.
    """

    def __init__(self, text: str) -> None:
        self._module = Module(text)
        self._programs: dict[str, Program] = {}

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return self._module.names

    def program(self, kernel: str) -> Program:
        """Decode a kernel, once."""
        if kernel not in self._programs:
            self._programs[kernel] = decode(self._module.entry(kernel))
        return self._programs[kernel]

    def launch(
        self,
        kernel: str,
        grid: Dim3,
        block: Dim3,
        params: bytes,
        *,
        shared_bytes: int = 0,
        allocations: Sequence[np.ndarray] = (),
        checks: Checks = NO_CHECKS,
    ) -> None:
        """Run a kernel to its end.

        Args:
            params: As the kernel's parameters lie in memory.
            shared_bytes: Dynamic shared memory of a block.
            allocations: What the kernel may touch; pointers in `params` are the arrays' own.

        Raises:
            PtxError: The kernel does what it must not, or what is not interpreted.
        """
        try:
            program = self.program(kernel)
            memory = GlobalMemory(allocations)
            launch = Launch(grid, block, shared_bytes, params, memory, checks)
            with np.errstate(all="ignore"):
                for blocks in _batches(launch):
                    run(program, Machine(program, launch, blocks))
        except PtxError as error:
            raise type(error)(f"{kernel}: {error}") from error


def _batches(launch: Launch) -> Iterator[range]:
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    step = max(1, MAX_LANES // launch.lanes)
    for start in range(0, blocks, step):
        yield range(start, min(start + step, blocks))
