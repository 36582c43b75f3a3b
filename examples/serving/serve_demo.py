"""Serve the digits package by the real Triton on a CPU, and compare every answer.

Writes a bundle, asks `moh-deploy bundle --check` about it, starts the server, sends requests from
several clients by HTTP and gRPC, and compares: bit for bit with the package run on the batch that
the server formed, and within rounding with the request run alone. Exit code 1 if an answer differs
or the metrics do not add up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from answers import Answers, compare_answers

import moh_deploy
from moh_deploy.package import Manifest
from moh_deploy.runtime.base import ModelInterface, Variant
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.served_model import threads_of
from moh_deploy.serving.triton.bundle_json import read_bundle
from moh_deploy.serving.triton.python_model import PUSH_SECONDS
from moh_deploy.serving.triton.server import RunningServer, find_server, lay_stub, running_server
from moh_deploy.validate.reference.samples import read_user_vectors

HERE = Path(__file__).parent
MODEL = "digits"
SAMPLES = "nv_inference_count"
TOKENS = "moh_routed_tokens_total"
LOG_BATCHES = 'parameters { key: "log_batches" value { string_value: "1" } }\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("build/digits/package"))
    parser.add_argument("--samples", type=Path, default=Path("build/digits/held-out.npz"))
    parser.add_argument("--server", type=Path, default=Path("build/triton-server"))
    parser.add_argument("--work-dir", type=Path, default=Path("build/serve-demo"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    root = given.work_dir / "bundle"

    server = find_server(given.server)
    if server is None:
        sys.exit(f"no Triton server in {given.server}")
    lay_stub(server)  # Its wheel installs the stub where the server does not look.

    step("Writing the bundle")
    moh_deploy.bundle(given.package, root, name=MODEL, instances=2)
    bundle = read_bundle(root)
    with (root / bundle.config).open("a") as config:
        config.write(LOG_BATCHES)  # So that each batch can be run again.
    found = moh_deploy.check_bundle(root, server=given.server)
    print(found.to_markdown())
    if found.failure is not None:
        sys.exit(str(found.failure))

    model = find_deployed(given.package)
    samples = read_user_vectors(given.samples, model.manifest).inputs
    inputs, log = given.work_dir / "samples.npz", given.work_dir / "server.log"
    np.savez(inputs, **samples)  # type: ignore[arg-type]
    answers_file = given.work_dir / "answers.npz"

    step("Starting tritonserver, and asking it")
    with running_server(server, root, log) as running:
        ports = ["--http", str(running.ports.http), "--grpc", str(running.ports.grpc)]
        files = ["--inputs", str(inputs), "--answers", str(answers_file)]
        load = ["--requests", str(given.requests), "--clients", str(given.clients)]
        command = [given.server / "bin/python", HERE / "client.py", "--model", MODEL]
        before = settled_metrics(running)
        subprocess.run([*command, *ports, *files, *load], check=True)
        answers = Answers.read(answers_file)
        served = int(answers.count.sum())
        expected = {SAMPLES: served, TOKENS: served * tokens_of_a_sample(model.manifest)}
        counted = {
            name: counted_from(running, name, total_of(name, before), number)
            for name, number in expected.items()
        }

    step("Running the package on every batch, and on every request alone")
    with model.open(Variant(threads=threads_of(bundle.settings))) as runner:
        comparison = compare_answers(answers, samples, runner, log)
    p50, p99 = np.percentile(answers.ms, [50, 99])
    print(comparison.text())
    print(f"each request took {p50:.1f} ms (median), {p99:.1f} ms (99th percentile)")
    for name, number in expected.items():
        print(f"{name} has grown by {counted[name]}, sent were {number}")
    if not comparison.is_good or counted != expected:
        sys.exit("FAILED")
    print("every answer is equal")


def counted_from(running: RunningServer, name: str, before: float, expected: int) -> int:
    """Return how far a counter of the server has come, once it is as far as expected.

    Counts reach Prometheus a moment later than answers their clients.
    """
    end = time.monotonic() + 10
    while True:
        counted = int(total_of(name, running.metrics()) - before)
        if counted == expected or time.monotonic() > end:
            return counted
        time.sleep(0.2)


def settled_metrics(running: RunningServer) -> str:
    """Return what the server counts once warm-up is in it."""
    time.sleep(2 * PUSH_SECONDS)
    return running.metrics()


def total_of(name: str, metrics: str) -> float:
    """Return the sum of all series of a metric, in the text that Prometheus reads."""
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def tokens_of_a_sample(manifest: ModelInterface) -> int:
    """Return how many tokens all layers route for one sample, in a model of fixed length."""
    assert isinstance(manifest, Manifest), "a package"
    return sum(layer.seq_len or 0 for layer in manifest.layers)


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
