"""List what a report was made with: versions, machine, kernels."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from moh_deploy.runtime.kernel_use import KernelUse

# Describe a machine, so that a reader knows where times were measured.


@dataclass(frozen=True)
class Processor:
    """The processor that layers run on."""

    processor: str  # its name
    num_cores: int  # cores that this process may run on; a quota of their time is not seen
    instruction_set: str | None  # what kernels run on, such as `avx2`; None without kernels

    @classmethod
    def this(cls, instruction_set: str | None) -> Processor:
        """Return the machine that this process runs on."""
        # Not `os.cpu_count()`, which counts cores that `taskset` or the cpuset of a container keeps
        # from this process.
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        return cls(_processor(), num_cores, instruction_set)

    def describe(self) -> str:
        """Return `AMD EPYC 9R14, 2 cores, avx512`."""
        cores = "1 core" if self.num_cores == 1 else f"{self.num_cores} cores"
        return f"{self.processor}, {cores}, {self.instruction_set or 'no kernels'}"


def _processor() -> str:
    try:
        # `platform.processor()` is empty or just `x86_64` on most Linux systems.
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


_PACKAGES = ("moh-deploy", "onnxruntime", "onnx", "numpy", "tensorrt", "tensorrt-rtx", "polygraphy")


def environment(kernels: KernelUse | None) -> list[tuple[str, str]]:
    """Return names and values for this process and the kernels that it used, if it ran a model."""
    found = ((name, _version(name)) for name in _PACKAGES)
    made = [
        *((name, number) for name, number in found if number is not None),
        ("Python", platform.python_version()),
        ("system", platform.platform()),
    ]
    if kernels is None:
        return made
    return [
        *made,
        ("machine", Processor.this(kernels.instruction_set).describe()),
        ("kernels", kernels.describe().removeprefix("kernels: ")),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
