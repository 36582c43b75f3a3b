"""Gates for measuring: how many are open, and that they are the same ones each time."""

import ctypes

import numpy as np
import pytest

from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.cuda import abi
from tests.cuda.libraries import Emulator


def _gates(emulator: Emulator, count: int, share: float, dtype: str = "float32") -> np.ndarray:
    gates = np.full(count + 1, 7, numpy_dtype(dtype))
    pointer = ctypes.c_void_p(gates.ctypes.data)
    write = emulator.library.moh_cuda_synthetic_gates
    assert write(pointer, abi.DTYPES[dtype], count, share, None) == 0
    assert gates[count] == 7
    return gates[:count].astype(np.float32)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_about_the_stated_share_is_open(emulator: Emulator, share: float, dtype: str):
    gates = _gates(emulator, 20_000, share, dtype)
    assert set(gates) == {0, 1}
    assert gates.mean() == pytest.approx(share, abs=0.02)
    # Of each head and of each token, too.
    assert gates.reshape(-1, 8).mean(0) == pytest.approx(np.full(8, share), abs=0.05)
    assert len(np.unique(gates.reshape(-1, 8), axis=0)) > 200


def test_none_and_all(emulator: Emulator):
    assert not _gates(emulator, 5000, 0.0).any()
    assert _gates(emulator, 5000, 1.0).all()


def test_the_same_each_time(emulator: Emulator):
    np.testing.assert_array_equal(_gates(emulator, 777, 0.6), _gates(emulator, 777, 0.6))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_0_to_1_is_refused(emulator: Emulator, share: float):
    gates = np.zeros(4, np.float32)
    write = emulator.library.moh_cuda_synthetic_gates
    status = write(ctypes.c_void_p(gates.ctypes.data), abi.DTYPES["float32"], 4, share, None)
    assert abi.STATUSES[status] == "kInvalidArgument"
    assert b"expected 0 to 1" in emulator.library.moh_cuda_last_error()
