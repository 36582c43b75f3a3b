"""The C interface as Python describes it is the one that the compiler sees."""

from __future__ import annotations

import ctypes

from tests.cuda import abi
from tests.cuda.libraries import Emulator


def test_structs_have_the_compilers_layout(emulator: Emulator):
    lines = emulator.library.moh_cuda_layout().decode().splitlines()
    compiled = {name: int(number) for name, number in map(str.split, lines)}
    assert abi.layout() == compiled


def test_the_device_is_the_one_that_was_configured(emulator: Emulator):
    device = abi.Device()
    with emulator.configured(multiprocessors=7, compute_capability=120):
        assert emulator.library.moh_cuda_device(ctypes.byref(device)) == 0
    assert (device.multiprocessors, device.compute_capability) == (7, 120)
