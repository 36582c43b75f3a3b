"""Read the tensors in a body of the protocol: numbers in JSON, or raw values behind it.

`label` names the tensor in a refusal.
"""

import json
import math
from collections.abc import Mapping
from itertools import chain
from typing import cast

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.queue import Refusal
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.system.suggest import did_you_mean

# Fields of a client's JSON, of the types that the protocol says; all raise `Refusal` where one has
# another type. `what` names in the refusal whose field it is.


def object_of(value: object, what: str) -> dict[str, object]:
    """Return a value that has to be a JSON object."""
    if not isinstance(value, dict):
        raise Refusal(f"{what} is no JSON object.")
    return cast(dict[str, object], value)


def objects_in(found: Mapping[str, object], key: str) -> list[dict[str, object]]:
    """Return a list of objects, which has to be there."""
    values = found.get(key)
    if not isinstance(values, list):
        raise Refusal(f"{key} is missing or no list.")
    return [object_of(value, f"one of {key}") for value in values]


def parameters_in(found: Mapping[str, object], what: str) -> dict[str, object]:
    """Return the object `parameters`; empty if it is missing."""
    return object_of(found.get("parameters", {}), f"parameters of {what}")


def text_in(found: Mapping[str, object], key: str, what: str) -> str:
    """Return a text that has to be there."""
    if key not in found:
        raise Refusal(f"{what} has no {key}.")
    value = found[key]
    if not isinstance(value, str):
        raise Refusal(f"{key} of {what} is no text.")
    return value


def flag_in(found: Mapping[str, object], key: str, what: str, default: bool = False) -> bool:
    """Return true or false, `default` where nothing is said."""
    value = found.get(key, default)
    if not isinstance(value, bool):
        raise Refusal(f"{key} of {what} is neither true nor false.")
    return value


# Name of a dtype to its name in the protocol.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}

# Datatypes that are sent as raw values alone.
WITHOUT_JSON = ("FP16", "BF16")

_MOST_AXES = 32
_LARGEST_SIZE, _LARGEST_SIZE_OF_EMPTY = 2**31 - 1, 2**12


def dtype_of(datatype: str) -> np.dtype[np.generic]:
    """Return the little-endian dtype of a datatype of the protocol.

    Raises:
        Refusal: There is no such datatype.
    """
    for name, known in DATATYPES.items():
        if known == datatype:
            dtype: np.dtype[np.generic] = np.dtype(BFLOAT16 if name == "bfloat16" else name)
            return dtype if dtype == BFLOAT16 else dtype.newbyteorder("<")
    raise Refusal(
        f"datatype is '{datatype[:40]}', expected one of {', '.join(DATATYPES.values())}."
    )


def raw_bytes(array: Array) -> bytes:
    """Return the bytes of an array in the protocol: little-endian, row by row."""
    if array.dtype == BFLOAT16:
        array = array.view(np.uint16)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def read_tensors(
    found: Mapping[str, object],
    raw: memoryview,
    expected: Mapping[str, TensorInfo] | None,
    key: str = "inputs",
    *,
    scalars: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Return the tensors of a request or an answer; arrays of raw values are views of these.

    Args:
        found: The JSON object of the body.
        raw: The bytes behind it.
        expected: Name to input of the model; None for an answer, whose tensors may be any.
        scalars: Tensors that may come with one more axis, of size 1: see `scalars_of`.

    Raises:
        Refusal: They do not fit `expected`, their own shapes or the length of `raw`.
    """
    arrays: dict[str, Array] = {}
    start = 0
    for tensor in objects_in(found, key):
        name = text_in(tensor, "name", f"one of {key}")
        label = f"'{name[:100]}'"
        if name in arrays:
            raise Refusal(f"{label} is there twice.")
        datatype = text_in(tensor, "datatype", label)
        if expected is not None:
            if name not in expected:
                raise Refusal(
                    f"there is no input {label}: the model has {', '.join(expected)}.",
                    hint=did_you_mean(name[:100], expected) or None,
                )
            wanted = DATATYPES.get(expected[name].dtype, expected[name].dtype)
            if datatype != wanted:
                raise Refusal(f"input '{name}' has datatype {datatype[:40]}, expected {wanted}.")
        dtype, shape = dtype_of(datatype), _shape(tensor, label)
        size = _binary_size(tensor, label)
        if size is None:
            arrays[name] = _from_json(tensor, label, datatype, dtype, shape)
        else:
            arrays[name] = _from_raw(raw[start : start + size], size, label, dtype, shape)
            start += size
        num_axes = (scalars or {}).get(name, len(shape))
        if shape[num_axes:] == (1,):
            arrays[name] = arrays[name].reshape(shape[:num_axes])
    if start != len(raw):
        raise Refusal(
            f"the body has {len(raw)} bytes behind its JSON, the tensors in it have {start}."
        )
    return arrays


def _shape(tensor: Mapping[str, object], label: str) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise Refusal(f"{label}: shape is missing, or no list of up to {_MOST_AXES} sizes.")
    for size in shape:
        # `True` is an int to Python.
        if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
            got = json.dumps(size)[:40]
            raise Refusal(f"{label}: shape has the size {got}, expected 0 to {_LARGEST_SIZE}.")
    if 0 in shape and max(shape) > _LARGEST_SIZE_OF_EMPTY:
        # Its body is small, but loops over its other axes would be long.
        raise Refusal(f"{label} is empty, but has the size {max(shape)}.")
    return tuple(shape)


def _binary_size(tensor: Mapping[str, object], label: str) -> int | None:
    parameters = parameters_in(tensor, label)
    for parameter in parameters:
        if parameter.startswith("shared_memory"):
            raise Refusal(f"{label}: shared memory is not supported; send the values.")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise Refusal(f"{label}: binary_data_size is no number of bytes.")
    if "data" in tensor:
        raise Refusal(f"{label} has both data and binary_data_size, expected one of them.")
    return size


def _from_raw(
    values: memoryview, size: int, label: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> Array:
    needed = math.prod(shape) * dtype.itemsize  # of Python's own ints, which do not overflow
    if size != needed:
        raise Refusal(
            f"{label}: binary_data_size is {size},"
            f" but {dtype.name}{list(shape)} has {needed} bytes."
        )
    if len(values) < size:
        raise Refusal(f"{label} is cut short: {len(values)} of {size} bytes are there.")
    if dtype == np.bool_ and size and int(np.frombuffer(values, np.uint8).max()) > 1:
        raise Refusal(f"{label}: a byte of BOOL is neither 0 nor 1.")
    return np.frombuffer(values, dtype).reshape(shape)


def _from_json(
    tensor: Mapping[str, object],
    label: str,
    datatype: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
) -> Array:
    if datatype in WITHOUT_JSON:
        raise Refusal(f"{label}: {datatype} has no form in JSON; send it as binary data.")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refusal(f"{label}: data is missing or no list, and there is no binary_data_size.")
    values = _flat(data, shape, label)
    # numpy would convert in silence: 1.5 to an integer, `true` to a number.
    by_kind: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    for kind in set(map(type, values)) - by_kind.get(dtype.kind, {int}):
        wrong = next(value for value in values if type(value) is kind)
        raise Refusal(f"{label}: data has {json.dumps(wrong)[:40]}, which is no {datatype}.")
    try:
        with np.errstate(over="ignore"):  # is infinite then, and refused below
            array = np.array(values, dtype)
    except OverflowError:
        raise Refusal(
            f"{label}: data has a number that is out of the range of {datatype}."
        ) from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(
            f"{label}: data has a number that is not finite, or out of the range of {datatype}.",
            hint="NaN and infinities can be sent as binary data.",
        )
    return array.reshape(shape)


def _flat(data: list[object], shape: tuple[int, ...], label: str) -> list[object]:
    """Return the values in row-major order; they may come flat, or nested as the shape is."""
    got, values = [len(data)], data
    while values and all(isinstance(item, list) for item in values):
        rows = cast(list[list[object]], values)
        if len(set(map(len, rows))) > 1:
            raise Refusal(f"{label}: the lists in data are of different lengths.")
        got.append(len(rows[0]))
        values = list(chain.from_iterable(rows))
    is_nested = tuple(got) == shape or (0 in shape and not values and len(got) <= len(shape))
    if not is_nested and got != [math.prod(shape)]:
        raise Refusal(f"{label}: data is of shape {got}, but shape says {list(shape)}.")
    return values
