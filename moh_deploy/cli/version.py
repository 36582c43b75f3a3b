"""The answer of `moh-deploy --version`: what is installed, without importing what runs models."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError

# Distribution to the name that its makers write.
_RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-gpu": "ONNX Runtime for GPUs",
    "openvino": "OpenVINO",
    "onnxruntime-genai": "onnxruntime-genai",
    "tensorrt": "TensorRT",
    "tensorrt-rtx-cu13": "TensorRT-RTX",
}


def version_text() -> str:
    """Return the version in the first line, then the machine, kernels and runtimes."""
    runtimes = [
        f"{called} {found}" for name, called in _RUNTIMES.items() if (found := _found(name))
    ]
    torch = _found("torch")
    export = f"PyTorch {torch}" if torch else "pip install 'moh-deploy[export]'"
    return "\n".join(
        (
            f"moh-deploy {__version__}",
            f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            f"kernels: {_kernels()}",
            f"runtimes: {', '.join(runtimes) or 'none'}",
            f"export: {export}",
        )
    )


def _found(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _kernels() -> str:
    library = native.kernel_library()
    if library is None:
        return f"none ({native.why_no_library()})"
    try:
        from moh_deploy.runtime.kernel_use import instruction_sets

        return f"{library.name} on {', '.join(instruction_sets(library))}"
    except (BackendError, ImportError) as error:
        return f"none ({str(error).splitlines()[0]})"
