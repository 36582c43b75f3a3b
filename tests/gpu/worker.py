"""The process that touches the device: runs jobs that a stage sends it, one after the other.

python -m tests.gpu.worker --device cuda    reads steps from stdin: see tests/gpu/serve.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from tests.gpu import (
    captures,
    correctness,
    machine,
    parts,
    plugins,
    primitives,
    timings,
)
from tests.gpu.device import DEVICES, Device
from tests.gpu.kernels import Bench
from tests.gpu.serve import Job, serve
from tests.gpu.steps import Facts
from tests.gpu.stored_cases import CASES

JOBS: dict[str, Callable[..., Facts]] = {
    "machine": machine.describe,
    "primitive": primitives.primitive,
    "case": correctness.case,
    "copy": machine.copy,
    "matrices": machine.matrices,
    "attention": timings.attention,
    "aggregated": timings.aggregated_attention,
    "router": timings.routing,
    "parts": parts.parts,
    "capture": captures.capture,
    "far_apart": correctness.far_apart,
    "plugin": plugins.plugin,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.worker")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--cases", type=Path, default=CASES)
    options = parser.parse_args()
    work(DEVICES[options.device](), options.cases)


def work(device: Device, cases: Path) -> None:
    """Serve jobs on a device until stdin ends."""
    bench = Bench(device, cases)

    def is_healthy() -> str:
        try:
            device.synchronize()
        except Exception as error:
            return f"the device does not recover: {type(error).__name__}: {error}"
        return ""

    serve({name: _with(bench, job) for name, job in JOBS.items()}, is_healthy)


def _with(bench: Bench, job: Callable[..., Facts]) -> Job:
    def run(library: str | None, **arguments: object) -> Facts:
        bench.library_path = None if library is None else Path(library)
        return job(bench, **arguments)

    return run


if __name__ == "__main__":
    main()
