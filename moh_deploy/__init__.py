"""Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.

Each command of `moh-deploy` is a function of the same name here. They are imported on first use, so
that importing the package costs nothing and reading a package needs no torch. Those of add-ons are
found by their metadata, see `add_ons`; `__init__.pyi` has the types of all that are ours.
"""

from __future__ import annotations

import os

# Read by ONNX Runtime when it is imported, and never again: so it is said before that (ADR 75).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

# Those of the core.
_HOME = {
    "OnnxPackage": "moh_deploy.package",
    "bench": "moh_deploy.api.bench",
    "bisect": "moh_deploy.api.bisect",
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

    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__all__":
        return __dir__()
    problem = None
    if not name.startswith("_"):
        from moh_deploy.add_ons import entry_points, missing_metadata

        if name in entry_points("functions"):
            return entry_points("functions")[name].load(object)
        problem = missing_metadata()
    why = f": {problem}" if problem else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")


def __dir__() -> list[str]:
    from moh_deploy.add_ons import entry_points

    return sorted({*_HOME, *entry_points("functions")})
