"""Send good and bad requests of every kind, and print memory and the answers by status.

    python -m tests.serving.attacks.mixed_load --requests 100000 --package build/digits/package

Good answers are compared with the package's own runs. The exit code is 1 where an answer is wrong,
a good request fails, a bad one gets 5xx, or the worker has ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.http.protocol import HEADER_LENGTH, Body, read_answer, write_request
from moh_deploy.system.npz import Array
from tests.handmade_package import write_package
from tests.serving.attacks.good_client import MIB, resident_mib
from tests.serving.http.running import Running, is_there, running

CLIENTS = 4
BAD_SHARE, HANG_UP_SHARE = 0.25, 0.05
MOST_ROWS = 64
PATH = "/v2/models/m/infer"


@dataclass(frozen=True)
class Asked:
    """A request, and its right answer; None where any answer below 500 is right."""

    kind: str
    content: bytes
    headers: Mapping[str, str]
    path: str = PATH
    right: Mapping[str, Array] | None = None


def good_requests(package: OnnxPackage) -> list[Asked]:
    """Return the recorded runs, and batches of 1 to 64 of their first samples."""
    asked = []
    with open_runner(package, Variant(threads=1)) as runner:
        for vectors in package.vectors:
            for rows in (1, 3, MOST_ROWS):
                inputs = {
                    name: np.resize(array, (rows, *array.shape[1:]))
                    for name, array in vectors.inputs.items()
                }
                right = runner.run(inputs)
                for is_binary in (True, False) if rows < MOST_ROWS else (True,):
                    body = write_request(inputs, is_binary=is_binary)
                    asked.append(Asked("good", body.content, body.headers, right=right))
    return asked


def bad_requests(package: OnnxPackage) -> list[Asked]:
    """Return one request for each way to be refused."""
    inputs = package.vectors[0].inputs
    first = next(iter(inputs.values()))
    good = write_request(inputs)
    head = json.loads(write_request(inputs, is_binary=False).content)

    def changed(**changes: object) -> bytes:
        tensors = [dict(tensor) for tensor in head["inputs"]]
        tensors[0].update(changes)
        return json.dumps({**head, "inputs": tensors}).encode()

    rows = MOST_ROWS + 1
    many = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
    lists = b'{"inputs":[' + b"[]," * (MIB // 2) + b"[]]}"
    bodies: dict[str, bytes | Body] = {
        "no JSON": b"{",
        "empty": b"",
        "no object": b"[]",
        "no inputs": b"{}",
        "lists": lists,
        "deep": b'{"inputs":' + b"[" * 5000,
        "much JSON": b" " * (5 * MIB),
        "another name": changed(name="nothing"),
        "another datatype": changed(datatype="BF16"),
        "another shape": changed(shape=[1]),
        "negative size": changed(shape=[-1]),
        "huge size": changed(shape=[2**40] * first.ndim),
        "text for numbers": changed(data=["a"] * first.size),
        "too few numbers": changed(data=[1]),
        "surplus bytes": Body(good.content + b"more", good.json_bytes),
        "cut off": Body(good.content[:-1], good.json_bytes),
        "wrong length": Body(good.content, len(good.content) + 1),
        "too many rows": write_request(many),
        "unknown output": json.dumps({**head, "outputs": [{"name": "no"}]}).encode(),
        "an object": json.dumps({**head, "parameters": {"x": {}}}).encode(),
    }
    asked = [
        Asked(kind, body.content, body.headers)
        if isinstance(body, Body)
        else Asked(kind, body, {"content-type": "application/json"})
        for kind, body in bodies.items()
    ]
    asked += [
        Asked("another model", b"{}", {}, "/v2/models/n/infer"),
        Asked("another version", b"{}", {}, "/v2/models/m/versions/2/infer"),
        Asked("another route", b"{}", {}, "/v3"),
        Asked("compressed", b"{}", {"content-encoding": "gzip"}),
        Asked("negative length", b"{}", {HEADER_LENGTH: "-1"}),
    ]
    return asked


class Load:
    """Clients that send until there were so many requests, or the time is over."""

    def __init__(
        self, server: Running, package: OnnxPackage, requests: int, minutes: float
    ) -> None:
        self._server = server
        self._good, self._bad = good_requests(package), bad_requests(package)
        self._left, self._ends = requests, time.monotonic() + 60 * minutes
        self._lock = threading.Lock()
        self.sent = 0
        self.longest_s = 0.0
        self.statuses: Counter[str] = Counter()
        self.sentences: dict[tuple[str, str], str] = {}
        self.faults: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _client(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        while time.monotonic() < self._ends:
            with self._lock:
                if self.sent >= self._left:
                    return
                self.sent += 1
            chosen = random.random()
            kinds = self._bad if chosen < BAD_SHARE else self._good
            asked = kinds[random.integers(len(kinds))]
            if chosen > 1 - HANG_UP_SHARE:
                self._hang_up(asked, random.random())
            else:
                self._ask(connection, asked)

    def _hang_up(self, asked: Asked, share: float) -> None:
        """Send a part of a request, or all of it, and close."""
        head = f"POST {PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(asked.content)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
        whole = head.encode() + b"\r\n" + asked.content
        with socket.create_connection(("127.0.0.1", self._server.port), 60) as connection:
            connection.sendall(whole[: int(len(whole) * share * 1.2)])
        self._note("hang-up", asked.kind, "", 0.0, is_fault=False)

    def _ask(self, connection: http.client.HTTPConnection, asked: Asked) -> None:
        began = time.monotonic()
        try:
            connection.request("POST", asked.path, asked.content, dict(asked.headers))
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # The server closes where it reads no more of a body: that may come before the answer.
            is_fault = asked.right is not None
            self._note(type(error).__name__, asked.kind, str(error), 0.0, is_fault=is_fault)
            return
        seconds = time.monotonic() - began
        if answer.status != 200:
            is_fault = asked.right is not None or answer.status >= 500
            sentence = json.loads(content)["error"]
            self._note(str(answer.status), asked.kind, sentence, seconds, is_fault=is_fault)
            return
        is_right = asked.right is not None and _is_close(
            read_answer(content, answer.getheader(HEADER_LENGTH)), asked.right
        )
        self._note("200" if is_right else "wrong", asked.kind, "", seconds, is_fault=not is_right)

    def _note(
        self, status: str, kind: str, sentence: str, seconds: float, *, is_fault: bool
    ) -> None:
        with self._lock:
            self.statuses[status] += 1
            if sentence:
                self.sentences.setdefault((status, kind), sentence)
            self.faults[f"{status} {kind}"] += is_fault
            self.longest_s = max(self.longest_s, seconds)


def _is_close(got: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    return all(np.allclose(got[name], array, rtol=1e-4, atol=1e-5) for name, array in right.items())


def main() -> int:
    """Run the load, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--package", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.package or write_package(Path(folder) / "package").root
        said = Path(folder) / "said.txt"
        with running(root, said, "--max-batch", str(MOST_ROWS)) as server:
            load = Load(server, OnnxPackage.open(root), options.requests, options.minutes)
            shown, began = -1, time.monotonic()
            while any(thread.is_alive() for thread in load.threads):
                time.sleep(0.2)
                if load.sent * 20 // options.requests > shown:
                    shown = load.sent * 20 // options.requests
                    rss = resident_mib(server.worker)
                    print(f"{time.monotonic() - began:7.0f} s {load.sent:7} sent {rss:5} MiB")
                    sys.stdout.flush()
            is_same = is_there(server.worker)
        complaints = said.read_text()
    for status, count in sorted(load.statuses.items()):
        print(f"{status:>20} {count:7}")
    for (status, kind), sentence in sorted(load.sentences.items()):
        print(f"{status} {kind}: {sentence[:150]}")
    faults = {name: count for name, count in load.faults.items() if count}
    print(f"longest {load.longest_s:.2f} s; faults {faults}; the same worker: {is_same}")
    print(complaints[:2000])
    return 1 if faults or not is_same else 0


if __name__ == "__main__":
    sys.exit(main())
