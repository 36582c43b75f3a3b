"""A worker of the first run whose jobs do what their model is called: no torch, no TensorRT."""

import os
import sys
import time
from collections.abc import Callable

from tests.gpu.first_worker import ENGINE_JOBS
from tests.gpu.serve import serve
from tests.gpu.steps import Facts, Wrong

LAYER: Facts = {
    "path": "blocks.0",
    "attention": "kernel",
    "decision": "fastest of 2 timed here",
    "ms": {"kernel": [0.1], "fused": [0.2]},
}
FOUND: dict[str, Facts] = {
    "build": {"built_s": 8.1, "layers": [LAYER]},
    "time": {"times": [{"events_ms": 0.02, "graph_ms": 0.01}]},
}
GPU: Facts = {"name": "NVIDIA L4", "compute_capability": 89}


def machine(
    lacks: dict[str, str] | None = None, library_to_name: list[str] | None = None, missing: str = ""
) -> Facts:
    if missing:
        raise ModuleNotFoundError(f"No module named '{missing}'")
    lacks = lacks or {}
    return {
        "gpu": None if "gpu" in lacks else GPU,
        "lacks": dict(lacks),
        "home": "/nowhere",
        "library_to_name": library_to_name,
        "versions": {"moh-deploy": "0.1.0", "polygraphy": None},
        "tensorrt": "TensorRT 10.13",
    }


def job(name: str) -> Callable[..., Facts]:
    def run(form: str, **arguments: object) -> Facts:
        if form == f"hangs in {name}":
            time.sleep(3600)
        if form == f"dies in {name}":
            print("what TensorRT says last", file=sys.stderr, flush=True)
            os._exit(7)
        if form == f"fails in {name}":
            raise RuntimeError("TensorRT does not build this")
        if form == f"wrong in {name}":
            raise Wrong("build.log lacks a line", {"tool_lines": ["trtexec --loadEngine=x"]})
        return {**FOUND.get(name, {}), **arguments}

    return run


if __name__ == "__main__":
    serve({"machine": machine, **{name: job(name) for name in ENGINE_JOBS}}, lambda: "")
