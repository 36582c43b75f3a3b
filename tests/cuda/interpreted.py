"""The host code of the emulated library, with kernels interpreted from their PTX.

The library calls a hook instead of a kernel, by the name that the kernel has in the PTX, too.
Parameters and memory are those that the library's own kernel would have had.
"""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from tests.cuda import abi, conformance
from tests.cuda.kernels import CHOSEN, Kernels, Plan
from tests.cuda.libraries import Emulator
from tests.cuda.memory import HostMemory
from tests.cuda.ptx.errors import PtxError
from tests.cuda.ptx.interpreter import NO_CHECKS, Interpreter
from tests.cuda.ptx.machine import Checks

LAUNCH_FAILED = 719  # cudaErrorLaunchFailure


@dataclass(frozen=True)
class KernelLaunch:
    """What the library asks for."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    params: bytes


class Interpreted:
    """The emulated library over kernels of some PTX modules.

    Args:
        modules: Texts, each read when the library launches a kernel that no earlier one has.

    Attributes:
        launched: Names of the kernels that ran.
    """

    def __init__(self, emulator: Emulator, modules: Iterable[str]) -> None:
        self.launched: set[str] = set()
        self._library = emulator.library
        self._interpreters: dict[str, Interpreter] = {}
        self._unread = iter(modules)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of all kernels of the modules."""
        while self._read_next():
            pass
        return tuple(self._interpreters)

    def find_mismatch(
        self, case: Case, plan: Plan = CHOSEN, checks: Checks = NO_CHECKS
    ) -> str | None:
        """Run a case and say what is wrong with it, or return None."""
        memory = HostMemory()
        # Accesses beyond a tensor are seen: guards around it would only hide them.
        kernels = Kernels(self._library, memory=memory, guards=False)
        with self._hooked(memory, checks) as errors:
            problem = kernels.find_mismatch(case, plan)
        if not errors:
            return problem
        if not isinstance(errors[0], PtxError):
            raise errors[0]
        return f"{case}: {errors[0]}"

    def run_primitive(self, name: str, words: np.ndarray) -> np.ndarray:
        """Run a primitive of plugins/cuda/conformance.

        Raises:
            PtxError: Its kernel did what it must not.
        """
        memory = HostMemory()
        size = 4 * conformance.listed(self._library)[name][1] * len(words)
        source = memory.put(np.ascontiguousarray(words).reshape(-1).view(np.uint8))
        target = memory.put(np.zeros(size, np.uint8))
        with self._hooked(memory, NO_CHECKS) as errors:
            self._library.moh_cuda_conformance(
                name.encode(), source, words.nbytes, target, size, None
            )
        if errors:
            raise errors[0]
        return memory.get(target, size).view(np.uint32).reshape(len(words), -1)

    @contextmanager
    def _hooked(self, memory: HostMemory, checks: Checks) -> Iterator[list[Exception]]:
        """Let the library launch kernels of the modules; yields the errors of those that fail."""
        errors: list[Exception] = []

        def hook(
            name: bytes,
            grid: Sequence[int],
            block: Sequence[int],
            shared_bytes: int,
            params: int,
            params_bytes: int,
        ) -> int:
            launch = KernelLaunch(
                name.decode(),
                (grid[0], grid[1], grid[2]),
                (block[0], block[1], block[2]),
                shared_bytes,
                ctypes.string_at(params, params_bytes),
            )
            try:
                self._launch(launch, memory, checks)
            except Exception as error:  # or it would be lost between here and the library
                errors.append(error)
                return LAUNCH_FAILED
            return 0

        function = abi.LaunchHook(hook)
        self._library.moh_emulator_set_launch_hook(function)
        try:
            yield errors
        finally:
            self._library.moh_emulator_set_launch_hook(None)

    def _read_next(self) -> bool:
        """Read one more module; return whether there was one."""
        text = next(self._unread, None)
        if text is None:
            return False
        interpreter = Interpreter(text)
        self._interpreters.update(dict.fromkeys(interpreter.kernels, interpreter))
        return True

    def _launch(self, launch: KernelLaunch, memory: HostMemory, checks: Checks) -> None:
        while launch.kernel not in self._interpreters:
            if not self._read_next():
                raise PtxError(f"No module has the kernel '{launch.kernel}'.")
        self.launched.add(launch.kernel)
        self._interpreters[launch.kernel].launch(
            launch.kernel,
            launch.grid,
            launch.block,
            launch.params,
            shared_bytes=launch.shared_bytes,
            allocations=memory.blocks,
            checks=checks,
        )
