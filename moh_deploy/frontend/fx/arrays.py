"""Torch tensors as numpy arrays and back, bfloat16 included."""

import ml_dtypes
import numpy as np
import torch

from moh_deploy.system.npz import BFLOAT16, Array


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return an array of the same dtype and values."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def to_torch(array: Array) -> torch.Tensor:
    """Return a tensor of the same dtype and values, with memory of its own."""
    copy = np.array(array, order="C")
    if copy.dtype == BFLOAT16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
