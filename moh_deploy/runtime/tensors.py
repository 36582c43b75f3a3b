"""Take PyTorch's tensors as arrays, and give arrays back as tensors, without a copy.

PyTorch is never imported here: a caller who hands over tensors has done that.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import BFLOAT16, Array


def is_torch_tensor(value: object) -> bool:
    """Tell whether a value is a tensor of PyTorch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any, name: str) -> Array:
    """Return a tensor or array as an array, on the same memory; anything else as numpy takes it.

    Args:
        value: A tensor on the CPU, whose gradients end here, an array, numbers.
        name: Of the input, for messages.

    Raises:
        ConfigError: The tensor is elsewhere than on the CPU.
    """
    if not is_torch_tensor(value):
        array: Array = np.asarray(value)
        return array
    if value.device.type != "cpu":
        raise ConfigError(
            f"input '{name}' is on {value.device}, expected the CPU.", hint="Hand over .cpu()."
        )
    torch: Any = sys.modules["torch"]
    tensor = value.detach()
    if tensor.dtype == torch.bfloat16:  # unknown to numpy: the bits, and their type
        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    same: Array = tensor.numpy()
    return same


def shared_tensor(array: Array) -> Any:
    """Return an array as a tensor of PyTorch, on the same memory."""
    torch: Any = sys.modules["torch"]
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
