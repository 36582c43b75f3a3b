"""Which card, driver and clocks the numbers belong to."""

from __future__ import annotations

import shutil
import subprocess

import torch

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


def describe() -> dict[str, object]:
    """Return the current GPU's properties, and what nvidia-smi says of it."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "card": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": _last_line(["nvcc", "--version"]),
        "nvidia_smi": clocks(),
    }


def clocks() -> dict[str, str]:
    """Return what nvidia-smi says now; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    index = str(torch.cuda.current_device())
    line = _last_line(
        [
            "nvidia-smi",
            f"--id={index}",
            f"--query-gpu={','.join(_QUERIES)}",
            "--format=csv,noheader",
        ]
    )
    return dict(zip(_QUERIES, (cell.strip() for cell in line.split(",")), strict=False))


def _last_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else ""
