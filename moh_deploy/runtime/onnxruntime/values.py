"""Values and types of ONNX Runtime to and from numpy, bfloat16 included."""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from moh_deploy.errors import BackendError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import BFLOAT16, Array

if TYPE_CHECKING:
    import onnxruntime as ort


_ORT_DTYPES = {"float": "float32", "double": "float64"}


def tensor_info(argument: ort.NodeArg) -> TensorInfo:
    """Return name, dtype and shape of a session's input; an axis without a name gets one."""
    element = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    if element is None:
        raise BackendError(
            f"input '{argument.name}' is of type {argument.type}, expected a tensor."
        )
    dtype = _ORT_DTYPES.get(element[1], element[1])
    shape = tuple(
        # A name of its own, so that it is taken for a dynamic dimension that has to agree with no
        # other.
        f"{argument.name} axis {axis}" if size is None else size
        for axis, size in enumerate(argument.shape)
    )
    return TensorInfo(argument.name, dtype, shape)


def to_ort(array: Array) -> ort.OrtValue:
    """Return an array as a value of ONNX Runtime, bit for bit."""
    import onnxruntime as ort

    array = np.require(array, requirements="C")
    if array.dtype == BFLOAT16:
        # numpy has no bfloat16 of its own that ONNX Runtime would know: it is handed the bits, with
        # their type beside them.
        raw = array.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def bind_input(binding: ort.IOBinding, name: str, array: Array) -> None:
    """Let runs by a binding read an array, which has to live as long."""
    if array.dtype == BFLOAT16:
        binding.bind_ortvalue_input(name, to_ort(array))
    else:  # in a third of the time
        binding.bind_cpu_input(name, array)


def from_ort(value: ort.OrtValue) -> Array:
    """Return a value of ONNX Runtime as an array, bit for bit."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    # ONNX Runtime's numpy() knows no bfloat16: copy the bytes.
    count = int(np.prod(value.shape()))
    raw = ctypes.string_at(value.data_ptr(), 2 * count) if count else b""
    values: Array = np.frombuffer(bytearray(raw), BFLOAT16).reshape(value.shape())
    return values


def view_of(value: ort.OrtValue) -> Array:
    """Return the memory of a value as an array, as long as the value lives; of bfloat16 a copy."""
    try:
        array: Array = np.from_dlpack(value)
    except (RuntimeError, AttributeError):  # bfloat16; an ONNX Runtime that knows no DLPack
        array = from_ort(value)
    return array


# Exchange arrays with other libraries by DLPack, bfloat16 included.


def from_dlpack(tensor: Any) -> Array:
    """Return a copy of a tensor on the CPU, bit for bit: its owner may use the memory again."""
    try:
        array: Array = np.array(np.from_dlpack(tensor))
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
    element = onnx.helper.np_dtype_to_tensor_dtype(source.dtype)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(source.shape), element)
    if not hasattr(value, "__dlpack__"):
        raise BackendError(
            f"ONNX Runtime {ort.__version__} hands over no tensors by DLPack.",
            hint="Install a newer one: pip install --upgrade onnxruntime.",
        )
    ctypes.memmove(value.data_ptr(), source.ctypes.data, source.nbytes)
    return value
