"""Kernels with one mistake each (plugins/cuda/emu/faults.cu), and the same without it."""

import ctypes

from tests.cuda.libraries import Emulator

WORDS = 256
RESULTS = 64


def fault_names(emulator: Emulator) -> list[str]:
    return emulator.library.moh_emulator_faults().decode().split()


def run_fault(emulator: Emulator, name: str, *, correct: bool) -> tuple[list[int], str]:
    """Return the results of a kernel and what the emulator reported, if anything."""
    memory = (ctypes.c_uint32 * WORDS)()
    memory[128:192] = range(64)
    status = emulator.library.moh_emulator_fault(name.encode(), int(correct), memory)
    error = emulator.error()
    if bool(status) != bool(error):
        raise AssertionError(f"{name}: status {status} with the error '{error}'")
    return list(memory[:RESULTS]), error
