"""Puts the tokens of an attention gigabytes apart, so that their offsets need 64 bits.

Hardly any of the addresses between them ever has memory.
"""

import ctypes
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tests.cuda import abi

_LAST_OFFSET = 2**31  # of a tensor's last token, in elements: one too large for 32 bits
_ROOM = 2**20  # for what the tensors have of a token


@contextmanager
def far_apart(args: abi.AttentionArgs) -> Iterator[None]:
    """Copy the tensors of an attention to where their tokens are far apart, and the output back."""
    unit = np.dtype(np.uint32 if args.dtype == abi.DTYPES["float32"] else np.uint16)
    with tempfile.TemporaryFile() as file:  # mostly holes
        size = _LAST_OFFSET * unit.itemsize + 5 * _ROOM
        file.truncate(size)
        space = mmap.mmap(file.fileno(), size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(space))
    for number, (name, shape) in enumerate(_shapes(args).items()):
        near = _view(getattr(args, name), getattr(args, f"{name}_strides"), shape, unit)
        setattr(args, name, start + number * _ROOM)
        setattr(args, f"{name}_strides", _far_strides(shape))
        far = _view(getattr(args, name), getattr(args, f"{name}_strides"), shape, unit)
        far[:] = near
    yield
    near[:] = far


def _shapes(args: abi.AttentionArgs) -> dict[str, tuple[int, int, int, int]]:
    """[batch, head, token, feature] of each tensor, the output last."""
    return {
        "query": (args.batch, args.q_heads, args.queries, args.head_dim),
        "key": (args.batch, args.kv_heads, args.keys, args.head_dim),
        "value": (args.batch, args.kv_heads, args.keys, args.value_dim),
        "output": (args.batch, args.q_heads, args.queries, args.value_dim),
    }


def _far_strides(shape: tuple[int, int, int, int]) -> abi.HeadStrides:
    _, heads, tokens, features = shape
    token = -(-_LAST_OFFSET // (8 * (tokens - 1))) * 8
    return abi.HeadStrides(heads * features, features, token)


def _view(
    address: int, strides: abi.HeadStrides, shape: tuple[int, int, int, int], unit: np.dtype
) -> np.ndarray:
    first = np.ctypeslib.as_array((ctypes.c_uint8 * unit.itemsize).from_address(address)).view(unit)
    elements = (strides.batch, strides.head, strides.token, 1)
    return as_strided(first, shape, [unit.itemsize * stride for stride in elements])
