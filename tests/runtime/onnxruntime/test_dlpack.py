from __future__ import annotations

import gc

import numpy as np
import pytest

from moh_deploy.runtime.onnxruntime.values import from_dlpack, to_dlpack
from moh_deploy.system.npz import BFLOAT16

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64", BFLOAT16)


class Capsule:
    """What a reader holds that took a capsule and nothing else."""

    def __init__(self, source: object) -> None:
        self._capsule = source.__dlpack__()  # type: ignore[attr-defined]
        self._device = source.__dlpack_device__()  # type: ignore[attr-defined]

    def __dlpack__(self, **given: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> object:
        return self._device


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)], ids=str)
def test_array_passes_bit_for_bit(dtype: object, shape: tuple[int, ...]):
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    got = from_dlpack(to_dlpack(array))
    np.testing.assert_array_equal(got, array, strict=True)


def test_part_of_an_array_passes():
    array = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(from_dlpack(to_dlpack(array[:, 1:3])), array[:, 1:3])


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16], ids=str)
def test_capsule_outlives_the_array_that_it_was_made_of(dtype: object):
    kept = [np.full(100, number).astype(dtype) for number in range(50)]
    capsules = [Capsule(to_dlpack(array)) for array in kept]
    del kept
    gc.collect()
    # Whatever was freed is written over.
    others = [np.full(100, 99).astype(dtype) for _ in range(200)]
    for number, capsule in enumerate(capsules):
        assert set(from_dlpack(capsule).astype(float)) == {number}
    assert others


def test_copy_does_not_follow_its_source():
    array = np.zeros(3, np.float32)
    copy = from_dlpack(to_dlpack(array))
    array[:] = 1
    assert not copy.any()
