"""What the card can do at best, in the same run as what is compared with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from tests.gpu.kernels import Bench
from tests.gpu.steps import Facts

_CALLS, _REPEATS = 4, 7


def copy(bench: Bench, size: int) -> Facts:
    """Copy so many bytes within the device's memory; bytes read and written are counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=bench.device.kind)
    target = torch.empty_like(source)
    us = _us(bench, lambda: target.copy_(source))
    return {"us": us, "gbytes_per_s": 2 * size / us / 1e3}


def matrices(bench: Bench, size: int, dtype: str) -> Facts:
    """Multiply square matrices; float32 by tensor cores in tf32, as our kernels do."""
    kind = getattr(torch, dtype)
    a, b = (torch.randn((size, size), device=bench.device.kind).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        us = _us(bench, lambda: torch.mm(a, b, out=out))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"us": us, "tflops": 2 * size**3 / us / 1e6, "dtype": dtype}


def _us(bench: Bench, call: Callable[[], object]) -> float:
    calls = [call] * _CALLS
    bench.device.warm_up(calls)
    replay = bench.device.capture(calls)
    return statistics.median(bench.device.elapsed_us(replay) / _CALLS for _ in range(_REPEATS))
