"""Which card, driver and clocks the numbers belong to."""

import shutil
import statistics
import subprocess
import warnings
from collections.abc import Callable

import torch

from tests.gpu.kernels import Bench
from tests.gpu.steps import Facts, Json, Missing

_QUERIES = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
)


def describe(bench: Bench) -> Facts:
    """Return the device's properties, and what nvidia-smi says of it.

    Raises:
        Missing: There is no GPU.
    """
    facts: Facts = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    if bench.device.kind == "cpu":
        return {**facts, "card": "none: the emulator"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        # torch returns False for an old driver as well as for none, and says which in a warning.
        said = [str(warning.message).strip() for warning in caught]
        smi = _output(["nvidia-smi"]) or "it printed nothing, or is not installed"
        raise Missing(
            " ".join([f"torch {torch.__version__} finds no GPU.", *said, f"nvidia-smi: {smi}"])
        )
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        **facts,
        "card": properties.name,
        "compute_capability": 10 * properties.major + properties.minor,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": _last_line(["nvcc", "--version"]),
        "nvidia_smi": clocks(torch.cuda.current_device()),
    }


def clocks(gpu: int) -> dict[str, Json]:
    """Return what nvidia-smi says of a GPU now; nothing where there is none."""
    line = _last_line(
        [
            "nvidia-smi",
            f"--id={gpu}",
            f"--query-gpu={','.join(_QUERIES)}",
            "--format=csv,noheader",
        ]
    )
    return dict(zip(_QUERIES, (cell.strip() for cell in line.split(",")), strict=False))


def _last_line(command: list[str]) -> str:
    lines = _output(command).splitlines()
    return lines[-1] if lines else ""


def _output(command: list[str]) -> str:
    """Return what a command prints, its errors too; nothing where it is not installed."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout.strip()


# What the card can do at best, in the same run as what is compared with it.


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
