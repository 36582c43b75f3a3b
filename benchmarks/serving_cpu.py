"""`moh-deploy serve` beside the same package run in a loop: requests a second, latency, CPU time.

The server is a process of its own; clients are threads of this one, each with one connection, and
every answer is compared with the package's own. All take turns in one run: the loop, then each
number of clients.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import positive

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.system.npz import Array

NAME = "measured"
LONG_S = 60.0
"""What answers and the package's own may differ by, in float32: sums in another order."""
TOLERANCE = 1e-4

Tensors = dict[str, Array]
Ask = Callable[[], AbstractContextManager[Callable[[], Tensors]]]


@dataclass(frozen=True)
class Row:
    """What one way of asking was measured to take.

    Attributes:
        way: The loop, or the clients.
        per_second: Requests.
        p50_ms: Median of the time from request to answer.
        p95_ms: 95 % of the requests take at most this time.
        p99_ms: Of one in a hundred it is longer.
        cpu_ms: Time of all processors, by request; of the server, where there is one.
        wrong: Answers that differ from the package's own.
    """

    way: str
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    wrong: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    package = OnnxPackage.open(options.package)
    inputs = _inputs(package, options.samples)
    variant = Variant(kernels="require", threads=options.threads, spins=False)
    with open_runner(package, variant) as runner:
        expected = runner.run(inputs)
        rows = [_of_calls("the package in a loop", _loop(runner, inputs), expected, options, 1)]
    with _server(options) as (port, pid):
        for clients in options.clients:
            way = f"serve, {clients} clients" if clients > 1 else "serve, 1 client"
            ask = partial(_client, port, inputs)
            rows.append(_of_calls(way, ask, expected, options, clients, pid))
    about = {**environment(start_load), **versions(("moh-deploy", "onnxruntime", "uvicorn"))}
    results = [asdict(row) for row in rows]
    print_results(about, results, [_table(rows)], as_json=options.json, width=100)
    return 1 if any(row.wrong for row in rows) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=positive, default=1000, help="of each way of asking")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--instances", type=positive, default=1)
    parser.add_argument("--max-delay-ms", type=float, default=1.0)
    parser.add_argument("--samples", type=positive, default=1, help="in each request")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _inputs(package: OnnxPackage, samples: int) -> Tensors:
    """Return samples of the first recorded run, as many as asked for."""
    recorded = package.vectors[0].inputs
    if BatchAxis.of(package.manifest) is None:
        return recorded
    return {name: np.resize(item, (samples, *item.shape[1:])) for name, item in recorded.items()}


def _loop(runner: Runner, inputs: Tensors) -> Ask:
    @contextmanager
    def ask() -> Iterator[Callable[[], Tensors]]:
        yield lambda: runner.run(inputs)

    return ask


@contextmanager
def _client(port: int, inputs: Tensors) -> Iterator[Callable[[], Tensors]]:
    """Yield what sends a request on a connection of its own, and returns the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
    body = write_request(inputs)

    def ask() -> Tensors:
        path = f"/v2/models/{NAME}/infer"
        connection.request("POST", path, body.content, body.headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(content.decode())
        return read_answer(content, response.headers.get(HEADER_LENGTH))

    with closing(connection):
        yield ask


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Yield port and process of a server."""
    command = [sys.executable, "-m", "moh_deploy", "serve", str(options.package), "--port", "0"]
    command += ["--name", NAME, "--json", "--threads", str(options.threads)]
    command += ["--instances", str(options.instances)]
    command += ["--max-delay-ms", str(options.max_delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = "".join(iter(process.stdout.readline, "}\n")) + "}"
            found = json.loads(said)
            yield found["port"], found["worker"]
        finally:
            process.terminate()


def _of_calls(
    way: str,
    ask: Ask,
    expected: Tensors,
    options: argparse.Namespace,
    clients: int,
    pid: int | None = None,
) -> Row:
    """Measure requests of some clients at the same time; `pid` is the process whose time counts."""

    def client(requests: int) -> tuple[list[float], list[Tensors]]:
        seconds: list[float] = []
        answers: list[Tensors] = []  # compared later: that is no work of a server
        with ask() as call:
            for _ in range(requests):
                start = time.perf_counter()
                answers.append(call())
                seconds.append(time.perf_counter() - start)
        return seconds, answers

    each = max(1, options.requests // clients)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, [max(1, each // 10)] * clients))  # to warm up
        cpu_s, start = _cpu_seconds(pid), time.perf_counter()
        found = list(pool.map(client, [each] * clients))
        wall_s, cpu_s = time.perf_counter() - start, _cpu_seconds(pid) - cpu_s
    ms = 1e3 * np.concatenate([seconds for seconds, _ in found])
    return Row(
        way,
        len(ms) / wall_s,
        *(float(np.percentile(ms, share)) for share in (50, 95, 99)),
        1e3 * cpu_s / len(ms),
        sum(not _is_right(answer, expected) for _, answers in found for answer in answers),
    )


def _is_right(got: Tensors, expected: Tensors) -> bool:
    return all(
        got[name].shape == item.shape
        and np.allclose(got[name], item, atol=TOLERANCE, rtol=TOLERANCE)
        for name, item in expected.items()
    )


def _cpu_seconds(pid: int | None) -> float:
    if pid is None:
        return time.process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table(rows: Sequence[Row]) -> Table:
    columns = "requests", "a second", "p50, ms", "p95, ms", "p99, ms", "CPU, ms each", "wrong"
    table = Table(*columns)
    for row in rows:
        figures = [row.per_second, row.p50_ms, row.p95_ms, row.p99_ms, row.cpu_ms]
        table.add_row(row.way, *(f"{figure:.3g}" for figure in figures), str(row.wrong))
    return table


if __name__ == "__main__":
    sys.exit(main())
