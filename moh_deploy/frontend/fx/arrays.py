"""Torch tensors as numpy arrays and back, bfloat16 included; and random ones."""

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import torch

from moh_deploy.errors import ConfigError
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


def made_values(
    shape: tuple[int, ...],
    dtype_name: str,
    value_range: tuple[float, float] | None = None,
    *,
    seed: int,
) -> torch.Tensor:
    """Return random but reproducible values.

    Without a range: normal floats, whole numbers 0 and 1 (legal ids of any table), True.

    Args:
        value_range: First and last value; uniform between them, both included for whole numbers.

    Raises:
        ConfigError: The dtype does not hold all of the range.
    """
    dtype: torch.dtype = getattr(torch, dtype_name)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    if not dtype.is_floating_point:
        low, high = value_range or (0, 1)
        limits = torch.iinfo(dtype)
        if not limits.min <= low <= high <= limits.max:
            raise ConfigError(
                f"values {low:g} to {high:g} do not fit {dtype_name}, which holds {limits.min} to"
                f" {limits.max}."
            )
        return torch.randint(int(low), int(high) + 1, shape, generator=generator, dtype=dtype)
    if value_range is None:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = value_range
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)


def shortest_float(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Return the least exact floating-point dtype of tensors; float32 if none has one."""
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
