"""A worker whose jobs go wrong in every way that a GPU and its driver can make a process go wrong.

It speaks to a stage as tests/gpu/worker.py does, and loads no torch.
"""

import ctypes
import math
import os
import time

from tests.gpu.serve import serve
from tests.gpu.steps import Facts, Missing, Wrong

_ILLNESS: list[str] = []


def machine(library: str | None) -> Facts:
    return {"card": "stub", "compute_capability": 80}


def measured(library: str, value: float = 1.0) -> Facts:
    return {"us": value, "pid": os.getpid()}


def illegal_access(library: str) -> Facts:
    return {"read": ctypes.string_at(8).decode()}


def hang(library: str) -> Facts:
    time.sleep(3600)
    return {}


def exits(library: str) -> Facts:
    os._exit(7)


def sticky(library: str) -> Facts:
    _ILLNESS.append("an illegal memory access was encountered")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def late(library: str) -> Facts:
    """Enqueue what fails: nothing is seen of it before somebody waits."""
    _ILLNESS.append("an illegal memory access was encountered")
    return {"us": 1.0}


def exception(library: str) -> Facts:
    raise ValueError("an odd shape")


def wrong(library: str) -> Facts:
    raise Wrong("3 of 8 elements are wrong", {"max_error": math.nan})


def missing(library: str) -> Facts:
    raise Missing("no such tool")


def is_healthy() -> str:
    return _ILLNESS[-1] if _ILLNESS else ""


JOBS = (
    machine,
    measured,
    illegal_access,
    hang,
    exits,
    sticky,
    late,
    exception,
    wrong,
    missing,
)

if __name__ == "__main__":
    serve({job.__name__: job for job in JOBS}, is_healthy)
