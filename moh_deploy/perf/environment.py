"""List what a report was made with: versions, machine, kernels."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from moh_deploy.perf.cost_model.machine import Processor
from moh_deploy.runtime.kernel_use import KernelUse

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
