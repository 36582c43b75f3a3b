"""Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.

Each command of `moh-deploy` is a function of the same name here. They are imported on first use, so
that importing the package costs nothing and reading a package needs no torch. Those of add-ons are
found by their metadata, see `add_ons`; `__init__.pyi` has the types of all that are ours.
"""

import os

# Read by ONNX Runtime when it is imported, and never again: so it is said before that (ADR 75).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"

# The public names of the core: functions in the file of their name in `api`, and others.
_HOME = {
    name: f"moh_deploy.api.{name}"
    for name in (
        *("bench", "bisect", "doctor", "export", "generate", "inline", "inspect", "load"),
        *("optimize", "precision", "probe", "prune", "run", "tune", "tune_within", "verify"),
    )
} | {
    "OnnxPackage": "moh_deploy.package",
    "kernel_library": "moh_deploy.native",
    "load_original": "moh_deploy.api.export",
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
