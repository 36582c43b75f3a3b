"""The C interface as Python describes it is the one that the compiler sees."""

import ctypes
import re

import numpy as np

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


def _why_no_device(emulator: Emulator, driver_cuda: int) -> tuple[str, str]:
    with emulator.configured(driver_cuda=driver_cuda):
        status = emulator.library.moh_cuda_device(ctypes.byref(abi.Device()))
    return abi.STATUSES[status], emulator.library.moh_cuda_last_error().decode()


def test_an_old_driver_is_told_apart_from_none(emulator: Emulator):
    """CUDA has one error for both."""
    status, text = _why_no_device(emulator, 0)
    assert (status, text) == ("kNoDevice", "There is no NVIDIA driver, or it finds no GPU.")
    status, text = _why_no_device(emulator, 11)
    assert status == "kDriverTooOld"
    assert re.fullmatch(
        r"The NVIDIA driver takes CUDA 11\.0; this library was compiled with (\d+)\.\d+, and needs"
        r" a driver for \1\.0 or later\.",
        text,
    )


def test_kernels_that_are_loaded_only_write_nothing(emulator: Emulator):
    args, gates = abi.RouterArgs(), np.full(6, 7, np.float32)
    logits = np.zeros(6, np.float32)
    args.dtype, args.tokens, args.routed, args.top_k = abi.DTYPES["float32"], 2, 3, 1
    args.routed_logits, args.gates = logits.ctypes.data, gates.ctypes.data
    with emulator.configured():
        for load_only, value in ((True, 7.0), (False, 0.0)):
            emulator.library.moh_cuda_load_only(load_only)
            assert emulator.library.moh_cuda_router(ctypes.byref(args), None, None) == 0
            assert gates[2] == value
        assert emulator.counts().launches == 1
