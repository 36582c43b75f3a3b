"""Tensors of PyTorch and arrays are the same memory, bit for bit."""

import numpy as np
import pytest
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.tensors import as_array, is_torch_tensor, shared_tensor
from moh_deploy.system.npz import BFLOAT16
from tests.nightly import sampled


@sampled(15)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_tensor_and_array_share_memory(dtype: str, shape: tuple[int, ...]):
    tensor = torch.ones(shape, dtype=getattr(torch, dtype))
    array = as_array(tensor, "x")
    assert array.dtype == (BFLOAT16 if dtype == "bfloat16" else dtype)
    assert array.shape == shape
    if array.size:
        array[...] = 0
        assert not tensor.any()
    back = shared_tensor(array)
    assert (back.dtype, back.data_ptr(), back.shape) == (
        tensor.dtype,
        tensor.data_ptr(),
        tensor.shape,
    )


def test_bits_of_bfloat16_are_kept():
    tensor = torch.tensor([1.0, -2.5, 3.1], dtype=torch.bfloat16)
    np.testing.assert_array_equal(as_array(tensor, "x").astype(np.float32), tensor.float().numpy())


def test_gradients_end_and_views_stay_views():
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    np.testing.assert_array_equal(as_array(tensor, "x"), tensor.detach().numpy())


def test_numbers_are_what_numpy_makes_of_them():
    assert as_array([1, 2], "x").dtype == np.int64
    assert not is_torch_tensor([1, 2])


def test_tensor_of_another_device_is_refused_by_its_input():
    with pytest.raises(ConfigError, match=r"input 'x' is on meta, expected the CPU"):
        as_array(torch.ones(2, device="meta"), "x")
