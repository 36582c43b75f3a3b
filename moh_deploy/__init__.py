"""Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.

Each command of `moh-deploy` is a function of the same name here. They are imported on first use, so
that importing the package costs nothing and reading a package needs no torch.
"""

from __future__ import annotations

import os

# Read by ONNX Runtime when it is imported, and never again: so it is said before that (ADR 75).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # as typing has it, whose import takes longer than the rest of a start
if TYPE_CHECKING:
    from moh_deploy.api.bench import bench
    from moh_deploy.api.bisect import bisect
    from moh_deploy.api.build import build
    from moh_deploy.api.bundle import bundle, check_bundle
    from moh_deploy.api.compare import compare
    from moh_deploy.api.cost import cost
    from moh_deploy.api.doctor import doctor
    from moh_deploy.api.drill import drill
    from moh_deploy.api.export import export, load_original
    from moh_deploy.api.genai import bundle_for_genai, verify_genai_bundle
    from moh_deploy.api.generate import generate
    from moh_deploy.api.inline import inline
    from moh_deploy.api.inspect import inspect
    from moh_deploy.api.polygraphy import polygraphy_runner
    from moh_deploy.api.precision import precision
    from moh_deploy.api.probe import probe
    from moh_deploy.api.profile import profile
    from moh_deploy.api.prune import prune
    from moh_deploy.api.run import run
    from moh_deploy.api.serve import serve
    from moh_deploy.api.tune import tune
    from moh_deploy.api.tune_within import tune_within
    from moh_deploy.api.verify import verify
    from moh_deploy.api.watch import watch
    from moh_deploy.native import kernel_library
    from moh_deploy.package import OnnxPackage
    from moh_deploy.runtime.tensorrt.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "OnnxPackage",
    "bench",
    "bisect",
    "build",
    "bundle",
    "bundle_for_genai",
    "check_bundle",
    "compare",
    "cost",
    "doctor",
    "drill",
    "export",
    "generate",
    "inline",
    "inspect",
    "kernel_library",
    "load_original",
    "polygraphy_runner",
    "precision",
    "probe",
    "profile",
    "prune",
    "run",
    "serve",
    "tune",
    "tune_within",
    "verify",
    "verify_genai_bundle",
    "watch",
]

_HOME = {
    "Engine": "moh_deploy.runtime.tensorrt.engine",
    "OnnxPackage": "moh_deploy.package",
    "bench": "moh_deploy.api.bench",
    "bisect": "moh_deploy.api.bisect",
    "build": "moh_deploy.api.build",
    "bundle": "moh_deploy.api.bundle",
    "bundle_for_genai": "moh_deploy.api.genai",
    "check_bundle": "moh_deploy.api.bundle",
    "compare": "moh_deploy.api.compare",
    "cost": "moh_deploy.api.cost",
    "doctor": "moh_deploy.api.doctor",
    "drill": "moh_deploy.api.drill",
    "export": "moh_deploy.api.export",
    "generate": "moh_deploy.api.generate",
    "inline": "moh_deploy.api.inline",
    "inspect": "moh_deploy.api.inspect",
    "kernel_library": "moh_deploy.native",
    "load_original": "moh_deploy.api.export",
    "polygraphy_runner": "moh_deploy.api.polygraphy",
    "precision": "moh_deploy.api.precision",
    "probe": "moh_deploy.api.probe",
    "profile": "moh_deploy.api.profile",
    "prune": "moh_deploy.api.prune",
    "run": "moh_deploy.api.run",
    "serve": "moh_deploy.api.serve",
    "tune": "moh_deploy.api.tune",
    "tune_within": "moh_deploy.api.tune_within",
    "verify": "moh_deploy.api.verify",
    "verify_genai_bundle": "moh_deploy.api.genai",
    "watch": "moh_deploy.api.watch",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
