"""Read requests of the Open Inference Protocol v2 and write its answers: JSON, and raw tensors.

A body is a JSON object. With the binary tensor extension, the header
`Inference-Header-Content-Length` says where that object ends, and the raw values of tensors follow
in the order in which it names them: little-endian, row by row. float16 and bfloat16 have no other
form.

Nothing is trusted: the result is arrays that fit the model or a `Refusal`, and no more memory is
taken than the body's own size asks for (`tensors.py`).

Source: inference_rest.md of github.com/kserve/open-inference-protocol; extension_binary_data.md of
github.com/triton-inference-server/server.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.serving.http import tensors
from moh_deploy.serving.http.queue import HttpLimits, Refusal
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean

HEADER_LENGTH = "inference-header-content-length"

_WRITTEN_AT_ONCE = 16384


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants, as raw values or as numbers in JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the model's names and dtypes."""

    # Name to array; arrays may be views of the body, and are not to be written to.
    inputs: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...]  # the outputs that are asked for, in this order
    id: str | None = None  # the client's name for the request; the answer repeats it
    timeout_s: float | None = None  # how long the client waits; None where it does not say


@dataclass(frozen=True)
class Body:
    """A body of the protocol."""

    content: bytes  # the JSON object, and raw values behind it
    json_bytes: int | None  # size of the object; None where nothing is behind it

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers of its form."""
        if self.json_bytes is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/octet-stream", HEADER_LENGTH: str(self.json_bytes)}


def read_request(
    content: bytes | bytearray,
    json_bytes: str | None,
    *,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    scalars: Mapping[str, int] | None = None,
    most_json: int = HttpLimits.max_json_bytes,
) -> InferRequest:
    """Read the body of a request.

    Args:
        json_bytes: The header that says how long its JSON is, where there is one.
        scalars: Inputs that may come with one more axis: see `scalars_of`.

    Raises:
        Refusal: It is no request, or is for another model. Here shapes are compared with the
            tensors' own values; `ServedModel.check` compares them with the model.
    """
    head, raw = _split(content, json_bytes)
    if len(head) > most_json:
        raise Refusal(
            f"the request has {len(head)} bytes of JSON, expected at most {most_json}.", status=413
        )
    request = tensors.object_of(parse_json(head, "the request", error=Refusal), "the request")
    parameters = tensors.parameters_in(request, "the request")
    for name, value in parameters.items():
        if not isinstance(value, (int, float, str)):
            raise Refusal(f"the parameter {name[:100]} is neither a number nor a text.")
    timeout = parameters.get("timeout") or None
    if timeout is not None and (type(timeout) is not int or not 0 < timeout < 2**63):
        raise Refusal("the parameter timeout is no number of microseconds.")
    return InferRequest(
        tensors.read_tensors(request, raw, {info.name: info for info in inputs}, scalars=scalars),
        _requested(request, parameters, outputs),
        (tensors.text_in(request, "id", "the request") or None) if "id" in request else None,
        None if timeout is None else timeout / 1e6,
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
    values = [(asked.name, outputs[asked.name], asked.is_binary) for asked in request.outputs]
    return _body(head, "outputs", values)


def write_request(
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[RequestedOutput] | None = None,
    id: str | None = None,
    is_binary: bool = True,
) -> Body:
    """Write a request, as a client does.

    Args:
        outputs: The outputs that are asked for; None for all, in the form of the inputs.
        is_binary: Send raw values, not numbers in JSON.
    """
    head: dict[str, object] = {} if id is None else {"id": id}
    if outputs is None:
        head["parameters"] = {"binary_data_output": is_binary}
    else:
        head["outputs"] = [
            {"name": asked.name, "parameters": {"binary_data": asked.is_binary}}
            for asked in outputs
        ]
    values = [(name, array, is_binary) for name, array in inputs.items()]
    return _body(head, "inputs", values)


def read_answer(content: bytes, json_bytes: str | None) -> dict[str, Array]:
    """Read the outputs in an answer, as a client does; raises as `read_reply` does."""
    return read_reply(content, json_bytes)[0]


def read_reply(
    content: bytes, json_bytes: str | None, scalars: Mapping[str, int] | None = None
) -> tuple[dict[str, Array], dict[str, object]]:
    """Read the outputs in an answer, and its parameters; `scalars` as in `read_request`.

    Raises:
        Refusal: It is no answer.
    """
    head, raw = _split(content, json_bytes)
    answer = tensors.object_of(parse_json(head, "the answer", error=Refusal), "the answer")
    outputs = tensors.read_tensors(answer, raw, None, key="outputs", scalars=scalars)
    return outputs, tensors.parameters_in(answer, "the answer")


def _body(head: dict[str, object], key: str, values: Iterable[tuple[str, Array, bool]]) -> Body:
    described: list[str] = []
    raw: list[bytes] = []
    for name, array, is_binary in values:
        tensor: dict[str, object] = {
            "name": name,
            "datatype": tensors.DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if is_binary:
            raw.append(tensors.raw_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
            described.append(_compact_json(tensor))
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refusal(
                    f"'{name}' holds NaN or infinities, which JSON has no numbers for.",
                    status=406,
                    hint="Ask for it with the parameter binary_data.",
                )
            described.append(f'{_compact_json(tensor)[:-1]},"data":[{_numbers(array)}]}}')
    text = f'{_compact_json(head)[:-1]},"{key}":[{",".join(described)}]}}'.encode()
    if not raw:
        return Body(text, None)
    return Body(b"".join([text, *raw]), len(text))


def _compact_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _numbers(array: Array) -> str:
    # In parts: other threads wait while Python writes a list.
    flat = array.ravel()
    parts = (
        flat[start : start + _WRITTEN_AT_ONCE] for start in range(0, len(flat), _WRITTEN_AT_ONCE)
    )
    return ",".join(_compact_json(part.tolist())[1:-1] for part in parts)


def _split(
    content: bytes | bytearray, json_bytes: str | None
) -> tuple[bytes | bytearray, memoryview]:
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


def _requested(
    request: Mapping[str, object], parameters: Mapping[str, object], outputs: Sequence[TensorInfo]
) -> tuple[RequestedOutput, ...]:
    datatypes = {info.name: tensors.DATATYPES.get(info.dtype, info.dtype) for info in outputs}
    by_default = tensors.flag_in(parameters, "binary_data_output", "the request")
    wanted: dict[str, bool] = {}
    for output in tensors.objects_in(request, "outputs") if request.get("outputs") else ():
        name = tensors.text_in(output, "name", "one of outputs")
        if name not in datatypes:
            raise Refusal(
                f"there is no output '{name[:100]}': the model has {', '.join(datatypes)}.",
                hint=did_you_mean(name[:100], datatypes) or None,
            )
        own = tensors.parameters_in(output, f"output '{name}'")
        for parameter in own:
            if parameter == "classification" or parameter.startswith("shared_memory"):
                raise Refusal(f"output '{name}': the parameter {parameter} is not supported.")
        wanted[name] = tensors.flag_in(own, "binary_data", f"output '{name}'", by_default)
    if not wanted:
        wanted = dict.fromkeys(datatypes, by_default)
    for name, is_binary in wanted.items():
        if not is_binary and datatypes[name] in tensors.WITHOUT_JSON:
            raise Refusal(
                f"output '{name}' is {datatypes[name]}, which has no form in JSON.",
                hint="Ask for it with the parameter binary_data.",
            )
    return tuple(RequestedOutput(name, is_binary) for name, is_binary in wanted.items())
