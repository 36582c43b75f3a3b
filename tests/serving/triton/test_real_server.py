"""Bundles in the real tritonserver, on a CPU, asked by Triton's own clients over HTTP and gRPC."""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.drift.judge import LiveCounts
from moh_deploy.serving.drift.live import windows_of_metrics
from moh_deploy.serving.drift.reference import RoutingReference, profile_of
from moh_deploy.serving.drill.targets import V2Client
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.source import ServedRun
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import read_bundle
from moh_deploy.serving.triton.check import examine_bundle
from moh_deploy.serving.triton.server import (
    Ports,
    RunningServer,
    TritonServer,
    find_server,
    running_server,
)
from moh_deploy.system.npz import Array, write_npz
from tests.handmade_package import vectors
from tests.kept_builds import ROOT
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import write_engine
from tests.serving.graphs import ECHO_TYPES, echo_samples, write_echo
from tests.serving.triton.bundles import bundle_of_handmade, damaged_bundle, replace_in
from tests.serving.triton.triton_environment import ENVIRONMENT, server_or_skip

# Its wheel takes half a minute to install. What a bundle holds is tested beside this without it.
pytestmark = nightly

SERVING = ROOT / "examples" / "serving"
SEQ = 5
SAMPLES = {"x": vectors(batch=64, seq=SEQ, seed=3).inputs["x"]}


@pytest.fixture(scope="module")
def server() -> TritonServer:
    return server_or_skip()


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script that users start; it imports its neighbours by their bare names."""
    monkeypatch.syspath_prepend(str(SERVING))
    import serve_demo

    yield serve_demo
    for name in ("serve_demo", "answers"):
        sys.modules.pop(name, None)


@dataclass(frozen=True)
class Served:
    """A bundle with a server that runs."""

    root: Path  # the bundle
    package: OnnxPackage  # what is in it
    running: RunningServer  # the server

    def ask(self, *options: str, inputs: Path, answers: Path, model: str) -> None:
        """Let the example's clients send requests."""
        ports = self.running.ports
        command = [ENVIRONMENT / "bin/python", SERVING / "client.py", "--model", model]
        places = ["--http", str(ports.http), "--grpc", str(ports.grpc)]
        files = ["--inputs", str(inputs), "--answers", str(answers)]
        subprocess.run([*command, *places, *files, *options], check=True, capture_output=True)

    def resident_bytes(self) -> int:
        """Return the memory of the server and of the models' processes."""
        group = os.getpgid(self.running.process.pid)

        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for pid, fields in processes()
            if int(fields[2]) == group
        )
        return pages * os.sysconf("SC_PAGE_SIZE")

    def probe(self) -> int:
        """Return the exit code of the bundle's own question whether the server answers."""
        command = [sys.executable, "-I", self.root / "probe.py", str(self.running.ports.http)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    def failures(self) -> float:
        """Return how many requests the server could not answer, as it counts them."""
        lines = self.running.metrics().splitlines()
        found = [line for line in lines if line.startswith("nv_inference_request_failure{")]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def post(self, model: str, tensor: object) -> tuple[int, Any]:
        """Send a request of one tensor as JSON, and return the status and the answer."""
        url = f"http://127.0.0.1:{self.running.ports.http}/v2/models/{model}/infer"
        answer = httpx.post(url, json={"inputs": [tensor]}, timeout=30)
        return answer.status_code, answer.json()

    def echo(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Send tensors as bytes, and return the outputs."""
        client = V2Client("127.0.0.1", self.running.ports.http, "echo", self.package.manifest)
        with contextlib.closing(client):
            return client(inputs).outputs


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield each process, and its fields behind the name: state, parent, process group."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            yield int(status.parent.name), status.read_text().rpartition(")")[2].split()


def children_of(process: int) -> tuple[int, ...]:
    """Return the processes that a process has started."""
    return tuple(pid for pid, fields in processes() if int(fields[1]) == process)


@pytest.fixture(scope="module")
def served(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    root = bundle_of_handmade(folder, instances=2, threads=1, max_batch=16, sample_every=1)
    with (root / read_bundle(root).config).open("a") as config:
        config.write('parameters { key: "log_batches" value { string_value: "1" } }\n')
    with running_server(server, root, folder / "server.log") as running:
        yield Served(root, OnnxPackage.open(folder / "package"), running)


def test_ten_thousand_answers_are_the_packages(served: Served, demo: ModuleType, tmp_path: Path):
    inputs, answers_file = tmp_path / "samples.npz", tmp_path / "answers.npz"
    write_npz(inputs, SAMPLES)
    before = demo.settled_metrics(served.running)
    load = ("--clients", "8", "--requests", "10000")
    served.ask(*load, inputs=inputs, answers=answers_file, model="handmade")
    answers = demo.Answers.read(answers_file)
    count = int(answers.count.sum())
    # Of the server, and of our telemetry: the package has one layer.
    for name, expected in ((demo.SAMPLES, count), (demo.TOKENS, count * SEQ)):
        start = demo.total_of(name, before)
        assert demo.counted_from(served.running, name, start, expected) == expected, name
    with open_runner(served.package, Variant(threads=1)) as runner:
        found = demo.compare_answers(answers, SAMPLES, runner, served.running.log)
        assert found.is_good, found.text()
        assert found.requests == 10_000
        assert found.largest_batch > 1, "no requests were joined"
        # A wrong answer would be noticed.
        answers.outputs["y"][0, 0, 0] = np.nextafter(answers.outputs["y"][0, 0, 0], np.float32(9))
        found = demo.compare_answers(answers, SAMPLES, runner, served.running.log)
        assert (found.unequal, found.beyond) == (1, 0)


def test_watch_reads_what_the_server_counts(served: Served, demo: ModuleType, tmp_path: Path):
    inputs, answers_file = tmp_path / "samples.npz", tmp_path / "answers.npz"
    write_npz(inputs, SAMPLES)

    def ask(_: float) -> None:
        load = ("--clients", "4", "--requests", "120")
        served.ask(*load, inputs=inputs, answers=answers_file, model="handmade")
        demo.settled_metrics(served.running)

    demo.settled_metrics(served.running)
    url, reference = f"http://127.0.0.1:{served.running.ports.metrics}/metrics", routing(served)
    (found,) = windows_of_metrics(url, reference, every=1, windows=1, wait=ask)
    assert isinstance(found, LiveCounts)
    answers = demo.Answers.read(answers_file)
    with open_runner(served.package, Variant(extra_outputs=("gates_0",))) as runner:
        gates = runner.run(SAMPLES)["gates_0"]  # [samples, SEQ, heads]
    places = zip(answers.first, answers.count, strict=True)
    sent = np.concatenate([gates[first : first + count] for first, count in places])
    (columns,) = reference.layout.columns
    assert found.requests == 120
    assert found.totals[columns.tokens] == len(sent) * SEQ
    assert found.totals[columns.on].sum() == np.count_nonzero(sent)
    np.testing.assert_allclose(found.totals[columns.mass].sum(), np.abs(sent).sum(), rtol=1e-5)


def routing(served: Served) -> RoutingReference:
    """Profile the package on random gates."""
    telemetry = Telemetry(served.package, model="m", sample_every=1)
    telemetry.start_window()
    random = np.random.default_rng(0)
    for seed in range(120):
        given, dims = vectors(batch=1, seq=SEQ, seed=seed).inputs, {"batch": 1, "seq": SEQ}
        telemetry.wanted(dims)
        gates = random.random((1, SEQ, served.package.manifest.layers[0].num_heads), np.float32)
        values = dict.fromkeys(telemetry.inner, gates)
        telemetry.saw(ServedRun(given, dims, values, (1,), 0.001, "kernels"))
    recorded = telemetry.dump_window()
    assert recorded is not None
    return profile_of(recorded, window=50, rate=0.05)


def test_every_dtype_passes_bit_for_bit_and_the_packages_refusal_reaches_the_client(
    server: TritonServer, tmp_path: Path
):
    package = write_echo(tmp_path / "package")
    root = tmp_path / "bundle"
    write_bundle(find_deployed(package.root), root, ServingSettings("echo"))
    sent = {name: echo_samples(3)[name] for name in ECHO_TYPES}
    unequal = {**sent, "int64": sent["int64"][:, :2]}
    with running_server(server, root, tmp_path / "server.log") as running:
        served = Served(root, package, running)
        with pytest.raises(BackendError, match=r"status 400: .*dimension 'seq' is inconsistent"):
            served.echo(unequal)
        got = served.echo(sent)
        assert served.probe() == 0
    for name, array in sent.items():
        assert got[f"o_{name}"].tobytes() == array.tobytes(), name


def test_configuration_of_an_engine_is_read_by_the_server(server: TritonServer, tmp_path: Path):
    engine = write_engine(tmp_path / "engine")
    write_bundle(find_deployed(engine), tmp_path / "bundle", ServingSettings("handmade"))
    log = failed_start(server, tmp_path / "bundle", tmp_path / "server.log")
    assert "unable to find backend library for backend 'tensorrt'" in log
    assert "failed to parse" not in log.lower()


def failed_start(server: TritonServer, root: Path, log: Path) -> str:
    """Return the log of a server that does not load a bundle."""
    with pytest.raises(BackendError), running_server(server, root, log):
        pass
    return log.read_text()


def test_key_that_the_check_does_not_know_stops_the_server(server: TritonServer, tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    replace_in(root, "repository/handmade/config.pbtxt", "max_queue_size", "max_queue")
    log = failed_start(server, root, tmp_path / "server.log")
    fault = examine_bundle(root, server.root).failure
    for text in (log, str(fault)):
        assert 'has no field named "max_queue"' in text


@pytest.fixture
def fresh_server(server: TritonServer, tmp_path: Path) -> TritonServer:
    """The server as its wheel installs it: the stub is packed, and the backend does not find it."""
    root = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    shutil.copytree(server.root, root)
    libraries = server.root.parents[1] / "nvidia_pytriton.libs"
    (tmp_path / "site-packages" / libraries.name).symlink_to(libraries)
    fresh = find_server(root)
    fresh.stub.unlink(missing_ok=True)
    return fresh


def test_server_starts_as_the_check_says_and_only_then(fresh_server: TritonServer, tmp_path: Path):
    root = bundle_of_handmade(tmp_path, threads=1)
    (fault,) = [
        finding
        for finding in examine_bundle(root, fresh_server.root).findings
        if not finding.is_good
    ]
    start = fresh_server.start_command(root, None)
    ports = Ports.free()
    options = (
        f" --http-address=127.0.0.1 --http-port={ports.http} --grpc-address=127.0.0.1"
        f" --grpc-port={ports.grpc} --metrics-address=127.0.0.1 --metrics-port={ports.metrics}"
        " --allow-gpu-metrics=false --exit-on-error=true"
    )
    refused = subprocess.run(
        ["sh", "-c", start + options], capture_output=True, text=True, check=False, timeout=120
    )
    assert "triton_python_backend_stub is not found" in refused.stderr
    subprocess.run(["sh", "-c", str(fault.fix).removeprefix("Copy it: ")], check=True)
    checked = examine_bundle(root, fresh_server.root)
    assert (checked.failure, checked.start) == (None, start)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec env {start}{options}"],
            stdout=log,
            stderr=log,
            cwd=Path(moh_deploy.__file__).parents[1],
        )
    try:
        running = RunningServer(ports, tmp_path / "log", process)
        end = time.monotonic() + 300
        while not running.is_ready():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        assert Served(root, OnnxPackage.open(tmp_path / "package"), running).probe() == 0
    finally:
        process.terminate()
        process.wait(60)


def test_damaged_kernels_are_not_served(server: TritonServer, tmp_path: Path):
    log = failed_start(server, damaged_bundle(tmp_path, has_digest=True), tmp_path / "log")
    assert "answers a recorded run wrongly, so it is not served: output 'y'" in log


def test_model_runs_in_the_environment_that_its_configuration_names(
    server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = bundle_of_handmade(tmp_path, threads=1)
    # A Python that is not the one that has moh-deploy.
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    with pytest.raises(BackendError), running_server(server, root, tmp_path / "server.log"):
        pass
    with (root / read_bundle(root).config).open("a") as config:
        value = f'value {{ string_value: "{sys.prefix}" }}'
        config.write(f'parameters {{ key: "EXECUTION_ENV_PATH" {value} }}\n')
    with running_server(server, root, tmp_path / "server.log") as running:
        served = Served(root, OnnxPackage.open(tmp_path / "package"), running)
        assert served.probe() == 0


def test_model_that_is_killed_gives_errors_until_it_is_loaded_again(
    server: TritonServer, tmp_path: Path
):
    root = bundle_of_handmade(tmp_path, threads=1)
    x = vectors(batch=1, seq=SEQ, seed=2)
    data = x.inputs["x"].ravel().tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, SEQ, 8], "data": data}
    options = ["--model-control-mode=explicit", "--load-model=*"]
    with running_server(server, root, tmp_path / "server.log", options) as running:
        served = Served(root, OnnxPackage.open(tmp_path / "package"), running)

        def ask() -> int:
            """Return the status; an answer has to be right."""
            status, answer = served.post("handmade", tensor)
            if status == 200:
                got = np.array(answer["outputs"][0]["data"], np.float32).reshape(1, SEQ, 8)
                np.testing.assert_allclose(got, x.outputs["y"], rtol=1e-5, atol=1e-6)
            return status

        assert [ask() for _ in range(5)] == [200] * 5
        assert served.probe() == 0
        (model,) = children_of(running.process.pid)
        os.kill(model, signal.SIGKILL)
        assert [ask() for _ in range(5)] == [500] * 5
        # What it says of itself is no help, and an answer is.
        assert running.is_ready()
        assert served.probe() == 1
        url = f"http://127.0.0.1:{running.ports.http}/v2/repository/models/handmade/load"
        httpx.post(url, content=b"{}", timeout=120).raise_for_status()
        assert [ask() for _ in range(5)] == [200] * 5
        assert served.probe() == 0


@pytest.mark.parametrize("instances", [1, 2])
def test_server_below_the_bundles_supervisor_comes_back(
    server: TritonServer, tmp_path: Path, instances: int
):
    root, log = bundle_of_handmade(tmp_path, instances=instances, threads=1), tmp_path / "log"
    x = vectors(batch=1, seq=SEQ, seed=2).inputs["x"]
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    with running_server(server, root, log, is_supervised=True) as running:
        served = Served(root, OnnxPackage.open(tmp_path / "package"), running)

        def ask() -> int:
            try:
                return served.post("handmade", tensor)[0]
            except httpx.TransportError:  # it is starting
                return 0

        end = time.monotonic() + 300

        def until(text: str) -> None:
            while text not in log.read_text():
                assert time.monotonic() < end
                time.sleep(0.2)

        # What dies before is one that does not start, which may take minutes.
        until("supervise: the server answers")
        # A probe may be one of the supervisor's children, and has none itself.
        models = [stub for item in children_of(running.process.pid) for stub in children_of(item)]
        assert len(models) == instances
        os.kill(models[0], signal.SIGKILL)
        # One of two is missed though the other answers.
        until("supervise: the server gave no answer 3 times; it starts again")
        while ask() != 200:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_two_minutes_of_load_leave_no_error_and_no_more_memory(
    served: Served, tmp_path: Path, record_property: Callable[[str, object], None]
):
    ports, report = served.running.ports, tmp_path / "perf.csv"
    command = [
        *(str(ENVIRONMENT / "bin/perf_analyzer"), "-m", "handmade", "-i", "grpc", "-b", "4"),
        *("-u", f"127.0.0.1:{ports.grpc}", "--shape", f"x:{SEQ},8", "--concurrency-range", "8"),
        *("--percentile", "99", "-f", str(report), "--stability-percentage", "999"),
    ]

    def load(seconds: int) -> None:
        # As many windows as it takes: each is measured three times.
        window = ("--measurement-interval", str(1000 * seconds // 3))
        ran = subprocess.run([*command, *window], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    load(15)  # What is allocated once.
    before, failed = served.resident_bytes(), served.failures()
    load(120)
    after = served.resident_bytes()
    assert served.failures() == failed
    assert after < before + 8 * 2**20, f"{(after - before) / 2**20:.1f} MiB more than before"
    (row,) = csv.DictReader(report.read_text().splitlines())
    # In microseconds; in the report of pytest, and shown with -s.
    for name in ("p50 latency", "p99 latency", "Inferences/Second"):
        record_property(name, row[name])
        print(f"{name}: {row[name]}")
    record_property("more memory", after - before)
    print(f"memory: {before / 2**20:.1f} MiB, {(after - before) / 2**20:+.1f} MiB")
