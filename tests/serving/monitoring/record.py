"""Record the metrics of `serve` and of Triton while things go right, and while they go wrong.

    python -m tests.serving.monitoring.record

Writes `serve.txt` and `triton.txt` beside this file: scrapes of real servers of the same bundle,
each with what has changed since the one before.
"""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import numpy as np

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.serving.drill.targets import V2Client
from moh_deploy.serving.guard.guard_io import Control, Fault, write_control
from moh_deploy.serving.triton.bundle import CONTROL_NAME, GUARD
from moh_deploy.serving.triton.config_pbtxt import filled
from moh_deploy.serving.triton.server import TritonServer, running_server
from moh_deploy.system.npz import Array, write_npz
from tests.edge_case_package import inputs, write_edge_package
from tests.serving.http.running import running
from tests.serving.triton.triton_environment import server_or_skip

MODEL = "edge"
SERVERS = ("serve", "triton")
HERE = Path(__file__).parent
WINDOW = 50
ALERTS = filled("alerts.yaml", model=MODEL, first_rung="kernels", counts_routing=True)
DASHBOARD = filled("dashboard.json", model=MODEL)
USED = frozenset(re.findall(r"\b(?:nv|moh)_\w+", ALERTS + DASHBOARD))
_SETTLED_S = 1.2  # Triton shows counts of a Python model half a second late


@dataclass(frozen=True)
class Server:
    """A server that is recorded."""

    port: int  # where it answers requests
    metrics: str  # the address of its metrics
    control: Path  # the control file of its guard
    manifest: Manifest  # of its model
    # Processes that run the model, where they are not the one with the metrics.
    instances: Callable[[], Sequence[int]] = tuple

    def ask(self, requests: Sequence[Mapping[str, Array]]) -> list[bool]:
        """Send requests from two clients; return which got tensors."""
        with ThreadPoolExecutor(2) as clients:
            return list(clients.map(self._is_answered, requests))

    def _is_answered(self, given: Mapping[str, Array]) -> bool:
        client = V2Client("127.0.0.1", self.port, MODEL, self.manifest)
        try:
            client(given)
        except BackendError:
            return False
        finally:
            client.close()
        return True

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Plant a fault of a drill."""
        write_control(self.control, Control(faults=(fault,)))
        time.sleep(0.5)
        yield
        write_control(self.control, Control())
        time.sleep(0.5)

    @contextmanager
    def many_waiting(self, number: int) -> Iterator[None]:
        """Let so many requests wait for slow runs, each on a connection of its own."""
        with ExitStack() as stack:
            sockets = []
            with self.planted("slow"):
                for index in range(number):
                    # From many addresses: a server may limit the connections of each.
                    source = (f"127.0.1.{1 + index // 10}", 0)
                    made = socket.create_connection(("127.0.0.1", self.port), 30, source)
                    sockets.append(stack.enter_context(made))
                    made.sendall(_post(inputs(batch=1, seed=index)))
                yield
            for waiting in sockets:
                assert b" 200 " in waiting.recv(100)


def _post(given: Mapping[str, Array]) -> bytes:
    """Return a request as it goes over the wire."""
    kinds = {"float32": "FP32", "bool": "BOOL"}
    tensors = [
        {"name": name, "shape": x.shape, "datatype": kinds[x.dtype.name], "data": x.tolist()}
        for name, x in given.items()
    ]
    body = json.dumps({"inputs": tensors})
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def write_watched_bundle(folder: Path) -> Path:
    """Write a bundle with guard, drill, shadow and reference."""
    package = write_edge_package(folder / "package")
    write_npz(folder / "usual.npz", inputs(batch=400, seed=9))
    reference = folder / "reference.json"
    moh_deploy.profile(package.root, reference, inputs=[folder / "usual.npz"], window=WINDOW)
    moh_deploy.bundle(
        package.root,
        folder / "bundle",
        name=MODEL,
        threads=1,
        max_batch=4,
        sample_every=1,
        guard="default",
        shadow=package.root,
        shadow_share=1.0,
        drill=True,
        reference=reference,
    )
    return folder / "bundle"


def scrapes(server: Server, most_waiting: int) -> Iterator[tuple[str, str]]:
    """Yield what a server shows after each thing that happens to it: name and text."""

    def scrape(name: str) -> tuple[str, str]:
        time.sleep(_SETTLED_S)
        with urlopen(server.metrics, timeout=30) as answer:
            return name, answer.read().decode()

    seeds = count(1000)

    def traffic(number: int, factor: float = 1.0) -> list[Mapping[str, Array]]:
        drawn = [inputs(batch=1, seed=next(seeds)) for _ in range(number)]
        return [{**request, "x": request["x"] * np.float32(factor)} for request in drawn]

    def until(name: str, alarms: int, factor: float) -> tuple[str, str]:
        # A window may begin with requests of before, and ends with a look at the metrics.
        for _ in range(50):
            assert all(server.ask(traffic(10, factor)))
            _, text = scrape(name)
            if re.search(rf"^moh_drift_recent_alarms.* {alarms}(\.0)?$", text, re.MULTILINE):
                return name, text
        raise AssertionError(f"{name}: there were never {alarms} alarms among the last windows")

    yield scrape("start")
    assert all(server.ask(traffic(120)))
    yield scrape("healthy")
    unequal = {"x": inputs(batch=1, seq=4)["x"], "valid": inputs(batch=1)["valid"]}
    assert not any(server.ask([unequal] * 40))
    yield scrape("client errors")
    assert not any(server.ask(traffic(40, 1e30)))
    yield scrape("refused")
    yield until("one alarm", 1, -3.0)
    yield until("two alarms", 2, -3.0)
    yield until("calm", 0, 1.0)
    with server.many_waiting(most_waiting):
        yield scrape("queue")
    # Behind the rest, since it may move the guard.
    assert all(server.ask(traffic(10, np.nan)))
    yield scrape("not finite")
    with server.planted("crash"):
        assert all(server.ask(traffic(20)))
        yield scrape("fallback")
    for process in server.instances():
        os.kill(process, signal.SIGKILL)
    if server.instances():
        server.ask(traffic(4))
        yield scrape("silent")


@contextmanager
def watched(kind: str, bundle: Path, folder: Path) -> Iterator[Server]:
    """Serve a bundle by `serve` or by Triton."""
    control = bundle / GUARD / CONTROL_NAME
    manifest = OnnxPackage.open(folder / "package").manifest
    if kind == "serve":
        with running(bundle, folder / "serve.log", name=None) as found:
            yield Server(found.port, f"{found.url}/metrics", control, manifest)
        return
    installed: TritonServer = server_or_skip()
    with running_server(installed, bundle, folder / "triton.log") as triton:
        metrics = f"http://127.0.0.1:{triton.ports.metrics}/metrics"
        stubs = partial(children, triton.process.pid)
        yield Server(triton.ports.http, metrics, control, manifest, stubs)


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))


def record(kind: str, output: Path, folder: Path) -> None:
    """Record a server into a file."""
    bundle, last = write_watched_bundle(folder), dict[str, str]()
    with watched(kind, bundle, folder) as server, output.open("w", encoding="utf-8") as file:
        for name, text in scrapes(server, 160 if kind == "serve" else 600):
            file.write(f"# {name} at {time.time():.0f}\n")
            lines = [line for line in text.splitlines() if re.split(r"[ {]", line)[0] in USED]
            values = dict(line.rsplit(" ", 1) for line in lines)
            changed = {key: value for key, value in values.items() if last.get(key) != value}
            file.writelines(f"{key} {value}\n" for key, value in changed.items())
            last |= changed


# Series for promtool, made of metrics that were recorded of a real server.

GAUGES = re.compile(
    r"moh_(mode|hung_runs|reference_info|drift_ratio|drift_recent_alarms|queue_\w+_requests)"
    r"|nv_inference_pending_request_count"
)
BEAT = "moh_heartbeat_seconds"
GONE, SILENT = "gone", "silent"
"""Parts of a timeline: the server shows nothing; the process of its model is dead."""


@dataclass(frozen=True)
class Scrape:
    """What a server showed: when, and series to value."""

    seconds: float
    values: Mapping[str, float]


def scrapes_in(text: str) -> dict[str, Scrape]:
    """Read a recorded file: name to scrape, in order."""
    found: dict[str, Scrape] = {}
    values: dict[str, float] = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        heading, *lines = part.splitlines()
        name, seconds = heading.split(" at ")
        pairs = (line.rsplit(" ", 1) for line in lines)
        values = values | {key: float(value) for key, value in pairs}
        found[name] = Scrape(float(seconds), values)
    return found


def series_of(
    scrapes: Mapping[str, Scrape],
    timeline: Sequence[tuple[str, int]],
    *,
    step: int = 1,
    frozen: str = "",
    gauges: Mapping[str, float] | None = None,
) -> list[dict[str, str]]:
    """Return input series of promtool: each minute of a part of the timeline is like its scrape.

    Counters grow each minute by what they grew from the scrape before; gauges are as in it.

    Args:
        scrapes: As `scrapes_in` returns them.
        timeline: Name of a scrape, or `gone`, and minutes.
        step: Minutes between two samples.
        frozen: A counter that does not grow.
        gauges: Name of a gauge to another value.
    """
    names = list(scrapes)
    keys = dict.fromkeys(key for scrape in scrapes.values() for key in scrape.values)
    samples: dict[str, list[str]] = {key: [] for key in keys}
    reached = dict(scrapes["start"].values)
    elapsed = 0
    for name, minutes in timeline:
        for begun in range(0, minutes, step):
            for key in keys:
                samples[key].append("stale" if name == GONE and not begun else "_")
            if name == GONE:
                continue
            now, before = scrapes[name], scrapes[names[max(0, names.index(name) - 1)]]
            for key, value in now.values.items():
                metric = key.partition("{")[0]
                if metric == BEAT:
                    # A process that is dead beat last when this part of the timeline began.
                    minute = elapsed if name == SILENT else elapsed + begun
                    reached[key] = 60 * minute + value - now.seconds
                elif GAUGES.fullmatch(metric):
                    reached[key] = (gauges or {}).get(metric, value)
                elif metric != frozen:
                    grown = value - before.values.get(key, 0.0)
                    reached[key] = reached.get(key, 0.0) + step * grown
                samples[key][-1] = repr(reached.get(key, 0.0))
        elapsed += minutes
    return [{"series": key, "values": " ".join(values)} for key, values in samples.items()]


if __name__ == "__main__":
    for recorded in SERVERS:
        with TemporaryDirectory() as place:
            record(recorded, HERE / f"{recorded}.txt", Path(place))
