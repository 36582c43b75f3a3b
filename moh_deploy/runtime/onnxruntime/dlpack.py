"""Exchange arrays with other libraries by DLPack, bfloat16 included."""

from __future__ import annotations

import numpy as np

from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from moh_deploy.system.npz import Array


def from_dlpack(tensor: object) -> Array:
    """Return a copy of a tensor on the CPU, bit for bit: its owner may use the memory again."""
    try:
        array: Array = np.array(np.from_dlpack(tensor))  # type: ignore[arg-type]
    except (RuntimeError, BufferError):  # numpy has no bfloat16
        import onnxruntime as ort

        array = from_ort(ort.OrtValue.from_dlpack(tensor))
    return array


def to_dlpack(array: Array) -> object:
    """Return a copy of an array as an object that speaks DLPack and owns its memory."""
    # numpy's own capsule has no owner that outlives the array for every reader, and no bfloat16.
    return to_ort(array)
