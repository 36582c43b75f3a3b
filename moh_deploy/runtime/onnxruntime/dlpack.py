"""Exchange arrays with other libraries by DLPack, bfloat16 included."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx

from moh_deploy.errors import BackendError
from moh_deploy.runtime.onnxruntime.values import from_ort
from moh_deploy.system.npz import BFLOAT16, Array


def from_dlpack(tensor: object) -> Array:
    """Return a copy of a tensor on the CPU, bit for bit: its owner may use the memory again."""
    try:
        array: Array = np.array(np.from_dlpack(tensor))  # type: ignore[arg-type]
    except (RuntimeError, BufferError):  # numpy has no bfloat16
        import onnxruntime as ort

        array = from_ort(ort.OrtValue.from_dlpack(tensor))
    return array


def to_dlpack(array: Array) -> object:
    """Return a copy of an array as an object that speaks DLPack.

    The copy lives as long as the capsule that a reader takes from it, whatever becomes of array and
    object. A value of ONNX Runtime that is made of an array shares its memory instead, and keeps
    the array only as long as itself: a reader that copies later would read what was freed.

    Raises:
        BackendError: This ONNX Runtime does not speak DLPack.
    """
    import onnxruntime as ort

    source = np.ascontiguousarray(array).reshape(array.shape)
    if source.dtype == BFLOAT16:
        element = onnx.TensorProto.BFLOAT16
    else:
        element = onnx.helper.np_dtype_to_tensor_dtype(source.dtype)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(source.shape), element)
    if not hasattr(value, "__dlpack__"):
        raise BackendError(
            f"ONNX Runtime {ort.__version__} hands over no tensors by DLPack.",
            hint="Install a newer one: pip install --upgrade onnxruntime.",
        )
    ctypes.memmove(value.data_ptr(), source.ctypes.data, source.nbytes)
    return value
