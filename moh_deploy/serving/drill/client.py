"""Ask a server by the Open Inference Protocol v2 over HTTP, with raw tensors."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.serving.drill.load import ServerAnswer
from moh_deploy.serving.http.protocol import HEADER_LENGTH
from moh_deploy.serving.http.tensors import DATATYPES, dtype_of
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import Array

_TIMEOUT_S = 15.0


class V2Client:
    """A connection to a model on a server, of one thread; it connects again after an error.

    Args:
        host: Of the server.
        port: Of its HTTP.
        model: What the server calls it.
        outputs: The outputs that are wanted.
    """

    def __init__(self, host: str, port: int, model: str, outputs: Sequence[str]) -> None:
        self._address = host, port
        self._path = f"/v2/models/{quote(model)}/infer"
        self._outputs = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        """Ask, and wait for the answer.

        Raises:
            BackendError: There is none: no connection, or a status of 400 or above.
        """
        raw = {name: np.ascontiguousarray(one).tobytes() for name, one in inputs.items()}
        tensors = [
            {
                "name": name,
                "shape": list(one.shape),
                "datatype": DATATYPES[one.dtype.name],
                "parameters": {"binary_data_size": len(raw[name])},
            }
            for name, one in inputs.items()
        ]
        head = json.dumps({"inputs": tensors, "outputs": self._outputs}).encode()
        headers = {HEADER_LENGTH: str(len(head)), "content-type": "application/octet-stream"}
        try:
            connection = self._connected()
            connection.request("POST", self._path, b"".join([head, *raw.values()]), headers)
            response = connection.getresponse()
            content, said = response.read(), response.getheader(HEADER_LENGTH)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise BackendError(f"no answer: {type(error).__name__} {error}") from error
        if response.status >= 400:
            text = content[:300].decode(errors="replace")
            raise BackendError(f"status {response.status}: {text}")
        return _answer(content, len(content) if said is None else int(said))

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        return self._connection


def _answer(content: bytes, json_bytes: int) -> ServerAnswer:
    try:
        return _parsed(content, json_bytes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(
            "the server's answer is none of the v2 protocol with binary tensors.",
            hint="Name a server of `moh-deploy serve`, or Triton.",
        ) from error


def _parsed(content: bytes, json_bytes: int) -> ServerAnswer:
    head = parse_json(content[:json_bytes], "the server's answer", error=BackendError)
    if not isinstance(head, dict):
        raise TypeError("the protocol's answers are objects")
    outputs, place = {}, json_bytes
    for one in head["outputs"]:
        size = int(one["parameters"]["binary_data_size"])
        values = np.frombuffer(content[place : place + size], dtype_of(str(one["datatype"])))
        outputs[str(one["name"])] = values.reshape(one["shape"])
        place += size
    return ServerAnswer(outputs, str(head.get("parameters", {}).get("moh_rung", "")))
