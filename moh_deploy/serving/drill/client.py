"""Ask a server by the Open Inference Protocol v2 over HTTP, with raw tensors."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import quote

from moh_deploy.errors import BackendError
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.serving.batches import scalars_of
from moh_deploy.serving.drill.load import ServerAnswer
from moh_deploy.serving.http.limits import Refusal
from moh_deploy.serving.http.protocol import (
    HEADER_LENGTH,
    RequestedOutput,
    read_reply,
    write_request,
)
from moh_deploy.system.npz import Array

_TIMEOUT_S = 15.0


class V2Client:
    """A connection to a model on a server, of one thread; it connects again after an error.

    Args:
        host: Of the server.
        port: Of its HTTP.
        model: Name of the model on the server.
        manifest: Of the model.
    """

    def __init__(self, host: str, port: int, model: str, manifest: ModelInterface) -> None:
        self._address = host, port
        self._path = f"/v2/models/{quote(model)}/infer"
        self._outputs = [RequestedOutput(info.name, is_binary=True) for info in manifest.outputs]
        self._scalars = scalars_of(manifest)
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        """Ask, and wait for the answer.

        Raises:
            BackendError: There is none: no connection, or a status of 400 or above.
        """
        # Triton takes a number for each sample as [batch, 1] alone, `serve` takes it, too.
        sent = {
            name: array[..., None] if name in self._scalars else array
            for name, array in inputs.items()
        }
        body = write_request(sent, outputs=self._outputs)
        try:
            connection = self._connected()
            connection.request("POST", self._path, body.content, body.headers)
            response = connection.getresponse()
            content, json_bytes = response.read(), response.getheader(HEADER_LENGTH)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise BackendError(f"no answer: {type(error).__name__} {error}") from error
        if response.status >= 400:
            text = content[:300].decode(errors="replace")
            raise BackendError(f"status {response.status}: {text}")
        try:
            outputs, parameters = read_reply(content, json_bytes, self._scalars)
        except Refusal as error:
            raise BackendError(
                f"the server's answer is none of the v2 protocol with binary tensors: {error}",
                hint="Name a server of `moh-deploy serve`, or Triton.",
            ) from error
        return ServerAnswer(outputs, str(parameters.get("moh_rung", "")))

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        return self._connection
