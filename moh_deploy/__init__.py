"""Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.

Each command of `moh-deploy` is a function of the same name here. They are imported on first use, so
that importing the package costs nothing and reading a package needs no torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import takes longer than the rest of a start
if TYPE_CHECKING:
    from moh_deploy.api import export, load_original
    from moh_deploy.backends.trt.engine import Engine
    from moh_deploy.jobs.bench import bench
    from moh_deploy.jobs.bisect import bisect
    from moh_deploy.jobs.build import build
    from moh_deploy.jobs.doctor import doctor
    from moh_deploy.jobs.inspect import inspect
    from moh_deploy.jobs.polygraphy import polygraphy_runner
    from moh_deploy.jobs.precision import precision
    from moh_deploy.jobs.probe import probe
    from moh_deploy.jobs.run import run
    from moh_deploy.jobs.tune import tune
    from moh_deploy.jobs.verify import verify
    from moh_deploy.native import kernel_library
    from moh_deploy.package import OnnxPackage

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "OnnxPackage",
    "bench",
    "bisect",
    "build",
    "doctor",
    "export",
    "inspect",
    "kernel_library",
    "load_original",
    "polygraphy_runner",
    "precision",
    "probe",
    "run",
    "tune",
    "verify",
]

_HOME = {
    "Engine": "moh_deploy.backends.trt.engine",
    "OnnxPackage": "moh_deploy.package",
    "bench": "moh_deploy.jobs.bench",
    "bisect": "moh_deploy.jobs.bisect",
    "build": "moh_deploy.jobs.build",
    "doctor": "moh_deploy.jobs.doctor",
    "export": "moh_deploy.api",
    "inspect": "moh_deploy.jobs.inspect",
    "kernel_library": "moh_deploy.native",
    "load_original": "moh_deploy.api",
    "polygraphy_runner": "moh_deploy.jobs.polygraphy",
    "precision": "moh_deploy.jobs.precision",
    "probe": "moh_deploy.jobs.probe",
    "run": "moh_deploy.jobs.run",
    "tune": "moh_deploy.jobs.tune",
    "verify": "moh_deploy.jobs.verify",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
