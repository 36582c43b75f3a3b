"""Send requests from several threads, and compare every answer with the package's own runs."""

import http.client
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.serving.batches import scalars_of
from moh_deploy.serving.http import protocol
from moh_deploy.serving.http.limits import Refusal
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.tolerances import Tolerance

_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class ServerAnswer:
    """An answer of a server; `rung` is empty where the server does not name the fallback level."""

    outputs: Mapping[str, Array]
    rung: str


class V2Client:
    """A connection to a model on a server, of one thread; it connects again after an error."""

    def __init__(self, host: str, port: int, model: str, manifest: ModelInterface) -> None:
        self._address = host, port
        self._path = f"/v2/models/{quote(model)}/infer"
        self._outputs = [
            protocol.RequestedOutput(info.name, is_binary=True) for info in manifest.outputs
        ]
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
        body = protocol.write_request(sent, outputs=self._outputs)
        try:
            if self._connection is None:
                address = self._address
                self._connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT_S)
            connection = self._connection
            connection.request("POST", self._path, body.content, body.headers)
            response = connection.getresponse()
            content, json_bytes = response.read(), response.getheader(protocol.HEADER_LENGTH)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise BackendError(f"no answer: {type(error).__name__} {error}") from error
        if response.status >= 400:
            text = content[:300].decode(errors="replace")
            raise BackendError(f"status {response.status}: {text}")
        try:
            outputs, parameters = protocol.read_reply(content, json_bytes, self._scalars)
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


# After a request that failed: a server that starts again is not to be flooded.
_PAUSE_S = 0.02

# A connection to a server, of one thread. It raises MoHDeployError where a request fails.
Ask = Callable[[Mapping[str, Array]], ServerAnswer]


@dataclass(frozen=True)
class LoadCase:
    """A request, and the right outputs of each fallback level, a set for each way to run it."""

    inputs: Mapping[str, Array]
    right: Mapping[str, tuple[Mapping[str, Array], ...]]

    def is_right(self, answer: ServerAnswer, rule: Tolerance) -> bool:
        """Compare an answer by the rule of its outputs' dtypes and of the model's precision."""
        every = tuple(outputs for allowed in self.right.values() for outputs in allowed)

        def is_equal(name: str, expected: Array) -> bool:
            tolerance = BUILT_IN_POLICY.output_rule(expected.dtype.name, rule)
            found = compare_output(name, "", answer.outputs.get(name), expected, tolerance)
            return found.reason is None

        return any(
            all(is_equal(name, expected) for name, expected in outputs.items())
            for outputs in self.right.get(answer.rung) or every
        )


@dataclass(frozen=True)
class Asked:
    """A request that has ended; times are seconds since 1970."""

    begun: float
    ended: float
    outcome: Literal["right", "wrong", "failed"]
    rung: str = ""  # the fallback level that answered
    error: str = ""


class Load:
    """Clients that send one request after the other, each on a thread, until it is closed.

    Args:
        connections: One for each client.
        cases: Their requests, in turns.
    """

    def __init__(
        self, connections: Sequence[Ask], cases: Sequence[LoadCase], rule: Tolerance
    ) -> None:
        self.clients = len(connections)
        self._cases = tuple(cases)
        self._rule = rule
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._threads = [
            threading.Thread(target=self._client, args=(ask, first), daemon=True)
            for first, ask in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> list[Asked]:
        """Return the requests that ended since the last call."""
        with self._lock:
            found, self._asked = self._asked, []
        return found

    def close(self, timeout_s: float = 30.0) -> None:
        """Let every client finish its request, and end."""
        self._ends.set()
        for thread in self._threads:
            thread.join(timeout_s)

    def _client(self, ask: Ask, number: int) -> None:
        while not self._ends.is_set():
            asked = self._ask(ask, self._cases[number % len(self._cases)])
            with self._lock:
                self._asked.append(asked)
            number += 1
            if asked.outcome == "failed":
                self._ends.wait(_PAUSE_S)

    def _ask(self, ask: Ask, case: LoadCase) -> Asked:
        begun = time.time()
        try:
            answer = ask(case.inputs)
        except MoHDeployError as error:
            return Asked(begun, time.time(), "failed", error=error.message)
        ended = time.time()
        is_right = case.is_right(answer, self._rule)
        return Asked(begun, ended, "right" if is_right else "wrong", answer.rung)


def host_and_port(url: str) -> tuple[str, int]:
    """Return the two parts of a URL.

    Raises:
        ConfigError: It is of another form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or host is None or port is None or parts.path not in ("", "/"):
        raise ConfigError(f"url is '{url}', expected http://HOST:PORT.")
    return host, port
