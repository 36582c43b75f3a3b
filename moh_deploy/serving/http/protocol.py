"""Read requests of the Open Inference Protocol v2 and write its answers: JSON, and raw tensors.

A body is a JSON object. With the binary tensor extension, the header
`Inference-Header-Content-Length` says where that object ends, and the raw values of tensors follow
in the order in which it names them: little-endian, row by row. float16 and bfloat16 have no other
form.

Nothing is trusted: whatever is sent, the result is arrays that fit the model or a `Refusal`, and no
more memory is taken than the body's own size asks for.

Source: inference_rest.md of github.com/kserve/open-inference-protocol; extension_binary_data.md of
github.com/triton-inference-server/server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn, cast

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.refusal import Refusal
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.system.suggest import did_you_mean

HEADER_LENGTH = "inference-header-content-length"

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
"""Name of a dtype to its name in the protocol."""

_WITHOUT_JSON = ("FP16", "BF16")
_MOST_AXES = 32
_LARGEST_SIZE, _LARGEST_SIZE_OF_EMPTY = 2**31 - 1, 2**12


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants, as raw values or as numbers in JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the model's names and dtypes.

    Attributes:
        inputs: Name to array; arrays may be views of the body, and are not to be written to.
        outputs: What is wanted, in this order.
        id: What the client calls the request; the answer repeats it.
        timeout_s: How long the client waits; None where it does not say.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...]
    id: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Body:
    """A body of the protocol.

    Attributes:
        content: The JSON object, and raw values behind it.
        json_bytes: Size of the object; None where nothing is behind it.
    """

    content: bytes
    json_bytes: int | None

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that say what it is."""
        if self.json_bytes is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/octet-stream", HEADER_LENGTH: str(self.json_bytes)}


def dtype_of(datatype: str) -> np.dtype[np.generic]:
    """Return the dtype, of little-endian bytes, that a name of the protocol means.

    Raises:
        Refusal: It means none.
    """
    for name, known in DATATYPES.items():
        if known == datatype:
            dtype: np.dtype[np.generic] = np.dtype(BFLOAT16 if name == "bfloat16" else name)
            return dtype if dtype == BFLOAT16 else dtype.newbyteorder("<")
    raise Refusal(
        f"datatype is '{datatype[:40]}', expected one of {', '.join(DATATYPES.values())}."
    )


def read_request(
    content: bytes,
    json_bytes: str | None,
    *,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> InferRequest:
    """Read the body of a request.

    Args:
        content: The body.
        json_bytes: The header that says how long its JSON is, where there is one.
        inputs: What the model takes.
        outputs: What it returns.

    Raises:
        Refusal: It is no request, or one for another model. Shapes are compared with the tensors'
            own values here, with what the model expects elsewhere.
    """
    head, raw = _split(content, json_bytes)
    request = _object(parse_json(head, "the request", error=Refusal), "the request")
    parameters = _parameters(request, "the request")
    _refuse_sequences(parameters)
    arrays = _read_tensors(request, raw, {info.name: info for info in inputs})
    return InferRequest(
        arrays,
        _requested(request, parameters, outputs),
        _text_or_none(request, "id", "the request"),
        _timeout(parameters),
    )


def write_answer(
    request: InferRequest,
    outputs: Mapping[str, Array],
    *,
    model: str,
    version: str,
    parameters: Mapping[str, str] | None = None,
) -> Body:
    """Write the answer to a request: the outputs that it asks for, in its order.

    Raises:
        Refusal: Values that are not finite are asked for as JSON, which has no numbers for them.
    """
    head: dict[str, object] = {"model_name": model, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    if parameters:
        head["parameters"] = dict(parameters)
    tensors = [(one.name, outputs[one.name], one.is_binary) for one in request.outputs]
    return _body(head, "outputs", tensors)


def write_request(
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[RequestedOutput] | None = None,
    id: str | None = None,
    is_binary: bool = True,
) -> Body:
    """Write a request, as a client does.

    Args:
        inputs: Name to array.
        outputs: What is wanted; None for all, in the form of the inputs.
        is_binary: Send raw values, not numbers in JSON.
    """
    head: dict[str, object] = {} if id is None else {"id": id}
    if outputs is None:
        head["parameters"] = {"binary_data_output": is_binary}
    else:
        head["outputs"] = [
            {"name": one.name, "parameters": {"binary_data": one.is_binary}} for one in outputs
        ]
    tensors = [(name, array, is_binary) for name, array in inputs.items()]
    return _body(head, "inputs", tensors)


def read_answer(content: bytes, json_bytes: str | None) -> dict[str, Array]:
    """Read the outputs in an answer, as a client does.

    Raises:
        Refusal: It is no answer.
    """
    head, raw = _split(content, json_bytes)
    answer = _object(parse_json(head, "the answer", error=Refusal), "the answer")
    return _read_tensors(answer, raw, None, key="outputs")


def _body(head: dict[str, object], key: str, tensors: Iterable[tuple[str, Array, bool]]) -> Body:
    described: list[dict[str, object]] = []
    raw: list[bytes] = []
    for name, array, is_binary in tensors:
        tensor: dict[str, object] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if is_binary:
            raw.append(_raw_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refusal(
                    f"'{name}' holds NaN or infinities, which JSON has no numbers for.",
                    status=406,
                    hint="Ask for it with the parameter binary_data.",
                )
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    text = json.dumps({**head, key: described}, separators=(",", ":"), allow_nan=False).encode()
    if not raw:
        return Body(text, None)
    return Body(b"".join([text, *raw]), len(text))


def _raw_bytes(array: Array) -> bytes:
    if array.dtype == BFLOAT16:
        array = array.view(np.uint16)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _split(content: bytes, json_bytes: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a body, and the raw values behind it."""
    if json_bytes is None:
        return content, memoryview(b"")
    # Python takes other digits for numbers, and signs and underscores.
    if not (json_bytes.isascii() and json_bytes.isdecimal() and len(json_bytes) < 20):
        raise Refusal(f"{HEADER_LENGTH} is '{json_bytes[:40]}', expected a number of bytes.")
    length = int(json_bytes)
    if length > len(content):
        raise Refusal(f"{HEADER_LENGTH} is {length}, but the body has {len(content)} bytes.")
    return content[:length], memoryview(content)[length:]


def _read_tensors(
    found: Mapping[str, object],
    raw: memoryview,
    expected: Mapping[str, TensorInfo] | None,
    key: str = "inputs",
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    start = 0
    for tensor in _objects(found, key):
        name = _text(tensor, "name", f"one of {key}")
        what = f"'{name[:100]}'"
        if name in arrays:
            raise Refusal(f"{what} is there twice.")
        datatype = _text(tensor, "datatype", what)
        if expected is not None:
            _check_expected(name, datatype, expected)
        dtype, shape = dtype_of(datatype), _shape(tensor, what)
        size = _binary_size(tensor, what)
        if size is None:
            arrays[name] = _from_json(tensor, what, datatype, dtype, shape)
        else:
            arrays[name] = _from_raw(raw[start : start + size], size, what, dtype, shape)
            start += size
    if start != len(raw):
        raise Refusal(
            f"the body has {len(raw)} bytes behind its JSON, the tensors in it have {start}."
        )
    return arrays


def _check_expected(name: str, datatype: str, expected: Mapping[str, TensorInfo]) -> None:
    if name not in expected:
        raise Refusal(
            f"there is no input '{name[:100]}': the model has {', '.join(expected)}.",
            hint=did_you_mean(name[:100], expected) or None,
        )
    wanted = DATATYPES.get(expected[name].dtype, expected[name].dtype)
    if datatype != wanted:
        raise Refusal(f"input '{name}' has datatype {datatype[:40]}, expected {wanted}.")


def _shape(tensor: Mapping[str, object], what: str) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise Refusal(f"{what}: shape is missing, or no list of up to {_MOST_AXES} sizes.")
    for size in shape:
        # `True` is an int to Python.
        if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
            got = json.dumps(size)[:40]
            raise Refusal(f"{what}: shape has the size {got}, expected 0 to {_LARGEST_SIZE}.")
    if 0 in shape and max(shape) > _LARGEST_SIZE_OF_EMPTY:
        # Its body is small whatever it says, but loops over its other axes would be long.
        raise Refusal(f"{what} is empty, but has the size {max(shape)}.")
    return tuple(shape)


def _binary_size(tensor: Mapping[str, object], what: str) -> int | None:
    parameters = _parameters(tensor, what)
    for parameter in parameters:
        if parameter.startswith("shared_memory"):
            raise Refusal(f"{what}: shared memory is not supported; send the values.")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise Refusal(f"{what}: binary_data_size is no number of bytes.")
    if "data" in tensor:
        raise Refusal(f"{what} has both data and binary_data_size, expected one of them.")
    return size


def _from_raw(
    values: memoryview, size: int, what: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> Array:
    needed = math.prod(shape) * dtype.itemsize  # of Python's own ints, which do not overflow
    if size != needed:
        raise Refusal(
            f"{what}: binary_data_size is {size}, but {dtype.name}{list(shape)} has {needed} bytes."
        )
    if len(values) < size:
        raise Refusal(f"{what} is cut short: {len(values)} of {size} bytes are there.")
    if dtype == np.bool_ and size and int(np.frombuffer(values, np.uint8).max()) > 1:
        raise Refusal(f"{what}: a byte of BOOL is neither 0 nor 1.")
    return np.frombuffer(values, dtype).reshape(shape)


def _from_json(
    tensor: Mapping[str, object],
    what: str,
    datatype: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
) -> Array:
    if datatype in _WITHOUT_JSON:
        raise Refusal(f"{what}: {datatype} has no form in JSON; send it as binary data.")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refusal(f"{what}: data is missing or no list, and there is no binary_data_size.")
    values = _flat(data, shape, what)
    _check_kind(values, dtype, what, datatype)
    try:
        with np.errstate(over="ignore"):  # is infinite then, and refused below
            array = np.array(values, dtype)
    except OverflowError:
        raise Refusal(
            f"{what}: data has a number that is out of the range of {datatype}."
        ) from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(
            f"{what}: data has a number that is not finite, or out of the range of {datatype}.",
            hint="NaN and infinities can be sent as binary data.",
        )
    return array.reshape(shape)


def _flat(data: list[object], shape: tuple[int, ...], what: str) -> list[object]:
    """Return the values in row-major order; they may come flat, or nested as the shape is."""
    got, values = [len(data)], data
    while values and all(isinstance(item, list) for item in values):
        rows = cast(list[list[object]], values)
        if len(set(map(len, rows))) > 1:
            raise Refusal(f"{what}: the lists in data are of different lengths.")
        got.append(len(rows[0]))
        values = list(chain.from_iterable(rows))
    is_nested = tuple(got) == shape or (0 in shape and not values and len(got) <= len(shape))
    if not is_nested and got != [math.prod(shape)]:
        raise Refusal(f"{what}: data is of shape {got}, but shape says {list(shape)}.")
    return values


def _check_kind(
    values: list[object], dtype: np.dtype[np.generic], what: str, datatype: str
) -> None:
    """Refuse what numpy would convert without a word: 1.5 to an integer, `true` to a number."""
    by_kind: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    allowed = by_kind.get(dtype.kind, {int})
    for kind in set(map(type, values)) - allowed:
        wrong = next(value for value in values if type(value) is kind)
        raise Refusal(f"{what}: data has {json.dumps(wrong)[:40]}, which is no {datatype}.")


def _requested(
    request: Mapping[str, object],
    parameters: Mapping[str, object],
    outputs: Sequence[TensorInfo],
) -> tuple[RequestedOutput, ...]:
    datatypes = {info.name: DATATYPES.get(info.dtype, info.dtype) for info in outputs}
    by_default = _flag(parameters, "binary_data_output", "the request")
    wanted: dict[str, bool] = {}
    for output in _objects(request, "outputs") if request.get("outputs") else ():
        name = _text(output, "name", "one of outputs")
        if name not in datatypes:
            raise Refusal(
                f"there is no output '{name[:100]}': the model has {', '.join(datatypes)}.",
                hint=did_you_mean(name[:100], datatypes) or None,
            )
        if name in wanted:
            raise Refusal(f"output '{name}' is asked for twice.")
        own = _parameters(output, f"output '{name}'")
        for parameter in own:
            if parameter == "classification" or parameter.startswith("shared_memory"):
                raise Refusal(f"output '{name}': the parameter {parameter} is not supported.")
        wanted[name] = _flag(own, "binary_data", f"output '{name}'", by_default)
    if not wanted:
        wanted = dict.fromkeys(datatypes, by_default)
    for name, is_binary in wanted.items():
        if not is_binary and datatypes[name] in _WITHOUT_JSON:
            raise Refusal(
                f"output '{name}' is {datatypes[name]}, which has no form in JSON.",
                hint="Ask for it with the parameter binary_data.",
            )
    return tuple(RequestedOutput(name, is_binary) for name, is_binary in wanted.items())


def _refuse_sequences(parameters: Mapping[str, object]) -> None:
    """Refuse what would change the answer; other parameters are the client's own business."""
    for name in ("sequence_id", "sequence_start", "sequence_end", "priority"):
        if parameters.get(name):
            raise Refusal(f"the parameter {name} is not supported: requests are independent.")


def _timeout(parameters: Mapping[str, object]) -> float | None:
    timeout = parameters.get("timeout")
    if not timeout:
        return None
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise Refusal("the parameter timeout is no number of microseconds.")
    return timeout / 1e6


def _object(value: object, what: str) -> dict[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else _no_object(what)


def _no_object(what: str) -> NoReturn:
    raise Refusal(f"{what} is no JSON object.")


def _objects(found: Mapping[str, object], key: str) -> list[dict[str, object]]:
    values = found.get(key)
    if not isinstance(values, list):
        raise Refusal(f"{key} is missing or no list.")
    return [_object(value, f"one of {key}") for value in values]


def _parameters(found: Mapping[str, object], what: str) -> dict[str, object]:
    return _object(found.get("parameters", {}), f"parameters of {what}")


def _text(found: Mapping[str, object], key: str, what: str) -> str:
    value = _text_or_none(found, key, what)
    if value is None:
        raise Refusal(f"{what} has no {key}.")
    return value


def _text_or_none(found: Mapping[str, object], key: str, what: str) -> str | None:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise Refusal(f"{key} of {what} is no text.")
    return value


def _flag(found: Mapping[str, object], key: str, what: str, default: bool = False) -> bool:
    value = found.get(key, default)
    if not isinstance(value, bool):
        raise Refusal(f"{key} of {what} is neither true nor false.")
    return value
