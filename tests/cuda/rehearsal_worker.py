"""The worker of the GPU tests on the emulator, with faults where a test wants them.

    MOH_FAULTS='{"case": "illegal access"}' python -m tests.cuda.rehearsal_worker --device cpu ...

What a machine with a GPU does not have is not there for it, either.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable

for absent in ("moh_deploy", "pydantic", "onnx", "onnxruntime", "ml_dtypes", "pytest", "yaml"):
    sys.modules[absent] = None  # type: ignore[assignment]

from tests.cuda import abi  # noqa: E402
from tests.gpu import worker  # noqa: E402
from tests.gpu.device import DEVICES, Host  # noqa: E402
from tests.gpu.kernels import Bench  # noqa: E402
from tests.gpu.steps import Facts  # noqa: E402

_STICKY: list[str] = []


class SickHost(Host):
    """A device on which nothing runs after an error, as a GPU's context."""

    def synchronize(self) -> None:
        if _STICKY:
            raise RuntimeError(_STICKY[-1])


def illegal_access(bench: Bench) -> None:
    """Let a kernel of ours read what is not there."""
    logits = 8
    args = abi.RouterArgs(dtype=1, routed_logits=logits, gates=logits, tokens=1, routed=4, top_k=2)
    bench.library.call("moh_cuda_router", ctypes.byref(args), None, None)


def sticky(bench: Bench) -> None:
    _STICKY.append("CUDA error: an illegal memory access was encountered")


def hang(bench: Bench) -> None:
    time.sleep(3600)


def exception(bench: Bench) -> None:
    raise ValueError("injected")


FAULTS: dict[str, Callable[[Bench], None]] = {
    "illegal access": illegal_access,
    "sticky": sticky,
    "hang": hang,
    "exception": exception,
}


def faulty(job: Callable[..., Facts], place: str, fault: str) -> Callable[..., Facts]:
    """Return a job that has a fault where its arguments, as JSON, contain `place`."""

    def run(bench: Bench, **arguments: object) -> Facts:
        if place in json.dumps(arguments):
            FAULTS[fault](bench)
        return job(bench, **arguments)

    return run


def main() -> None:
    for name, (place, fault) in json.loads(os.environ.get("MOH_FAULTS", "{}")).items():
        worker.JOBS[name] = faulty(worker.JOBS[name], place, fault)
    DEVICES["cpu"] = SickHost
    worker.main()


if __name__ == "__main__":
    main()
