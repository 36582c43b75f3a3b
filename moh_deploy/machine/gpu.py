"""Ask for NVIDIA's driver and GPUs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from moh_deploy.machine.ask import Failed, ask
from moh_deploy.system.nvidia_driver import Gpu, read_driver

NO_GPU = "run this on a machine with an NVIDIA GPU and its driver (`nvidia-smi` lists it there)"


@dataclass(frozen=True)
class GpuFacts:
    """The driver, and what it drives.

    Attributes:
        driver: Its version, of nvidia-smi; None: nvidia-smi does not say.
        cuda: The largest version of CUDA that it takes.
        gpus: At least one.
    """

    driver: str | None
    cuda: str
    gpus: tuple[Gpu, ...]


def probe_gpu() -> GpuFacts | Failed:
    """Ask the driver itself; nvidia-smi for its version only."""
    found = ask(read_driver)
    if isinstance(found, Failed):
        return Failed(found.why, NO_GPU)
    return GpuFacts(_driver_version(), found.cuda, found.gpus)


def _driver_version() -> str | None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    # The driver library tells the CUDA version, but not its own; nvidia-smi has one line a GPU.
    command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A driver that does not work prints its complaint on stdout: the return code tells.
    lines = ran.stdout.split()
    return lines[0] if ran.returncode == 0 and lines else None
