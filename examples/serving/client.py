"""Ask a server from several clients at once, by HTTP and by gRPC, and keep every answer.

Runs in the server's environment: it needs Triton's client, and nothing of moh-deploy.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

MOST_SAMPLES = 8


@dataclass(frozen=True)
class Load:
    """What one client sends.

    Attributes:
        client: Its number; even ones use HTTP, odd ones gRPC.
        requests: How many requests, one after the other.
        model: Name of the model.
        http: Port of HTTP.
        grpc: Port of gRPC.
        inputs: File with the samples, by name of the input.
        run: What the ids of all its requests begin with, so that no other run has the same.
    """

    client: int
    requests: int
    model: str
    http: int
    grpc: int
    inputs: Path
    run: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="npz with samples by input")
    parser.add_argument("--answers", type=Path, required=True, help="npz to write")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    given.clients = min(given.clients, given.requests)
    share, rest = divmod(given.requests, given.clients)
    run, place = f"{time.time_ns():x}", (given.model, given.http, given.grpc, given.inputs)
    loads = [Load(index, share + (index < rest), *place, run) for index in range(given.clients)]
    start = time.monotonic()
    with ProcessPoolExecutor(given.clients) as pool:
        parts = list(pool.map(ask, loads))
    seconds = time.monotonic() - start
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(given.answers, **answers)  # type: ignore[arg-type]
    print(f"{given.requests} requests from {given.clients} clients in {seconds:.1f} s")


def ask(load: Load) -> dict[str, np.ndarray]:
    """Send all requests of a client.

    Returns:
        `first` and `count` of the samples of each request, its `id` and `ms`; and `output/NAME`,
        the answers one behind the other.
    """
    module, port = (
        (tritonclient.grpc, load.grpc) if load.client % 2 else (tritonclient.http, load.http)
    )
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    with np.load(load.inputs) as file:
        samples = {name: file[name] for name in file.files}
    total = len(next(iter(samples.values())))
    random = np.random.default_rng(load.client)
    facts: dict[str, list[object]] = {"first": [], "count": [], "id": [], "ms": []}
    outputs: dict[str, list[np.ndarray]] = {}
    for index in range(load.requests):
        count = int(random.integers(1, min(MOST_SAMPLES, total) + 1))
        first = int(random.integers(0, total - count + 1))
        inputs = []
        for key, array in samples.items():
            part = np.ascontiguousarray(array[first : first + count])
            tensor = module.InferInput(key, list(part.shape), np_to_triton_dtype(part.dtype))
            tensor.set_data_from_numpy(part)
            inputs.append(tensor)
        name = f"{load.run}-{load.client}-{index}"
        start = time.perf_counter()
        answer = client.infer(load.model, inputs, request_id=name)
        facts["ms"].append(1e3 * (time.perf_counter() - start))
        facts["first"].append(first)
        facts["count"].append(count)
        facts["id"].append(name)
        for output in _names(answer):
            outputs.setdefault(output, []).append(answer.as_numpy(output))
    joined = {f"output/{name}": np.concatenate(parts) for name, parts in outputs.items()}
    return {**{name: np.array(values) for name, values in facts.items()}, **joined}


def _names(answer: object) -> list[str]:
    response = answer.get_response()  # type: ignore[attr-defined]
    if isinstance(response, dict):
        return [output["name"] for output in response["outputs"]]
    return [output.name for output in response.outputs]


if __name__ == "__main__":
    main()
