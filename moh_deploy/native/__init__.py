"""The kernel libraries of the installation; for the CPU also the reason why its library is missing.

Light to import: a program that registers the library in a session of its own needs nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY_NAME = "libmoh_ort_cpu.so"
OPENVINO_NAME = "libmoh_openvino.so"
BUILD_OPENVINO = "python -m moh_deploy.native.build_openvino"
"""What builds the extension for the OpenVINO that is installed."""
ORT_CUDA_NAME = "libmoh_ort_cuda.so"
BUILD_ORT_CUDA = "make cuda"
"""What compiles that library into this folder, in the sources of moh-deploy."""
INSTALL_ORT_GPU = (
    "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
"""How ONNX Runtime's CPU wheel is exchanged for that with CUDA: both hold the same files."""
# Written by tools/build_kernels.py.
RECORD_NAME = "build.json"
LOG_NAME = "build.log"


def kernel_library() -> Path | None:
    """Return the ONNX Runtime custom-op library with the kernels for the CPU, or None.

    options.register_custom_ops_library(str(moh_deploy.kernel_library()))
    """
    path = FOLDER / LIBRARY_NAME
    return path if path.is_file() else None


def openvino_extension() -> Path | None:
    """Return the extension by which OpenVINO runs the kernels, or None."""
    path = FOLDER / OPENVINO_NAME
    return path if path.is_file() else None


def cuda_library() -> Path | None:
    """Return the library with the operators of ONNX Runtime's CUDA provider, or None."""
    path = FOLDER / ORT_CUDA_NAME
    return path if path.is_file() else None


def why_no_library() -> str:
    """Return why `kernel_library` gives None, as the installation recorded it."""
    try:
        record = json.loads((FOLDER / RECORD_NAME).read_text(encoding="utf-8"))
        reason = record["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return "moh-deploy runs from files that were not installed"
    if reason is None:
        return f"{LIBRARY_NAME} was built, but is no longer in moh_deploy/native"
    # Reports show this: no absolute path.
    more = f" (log: moh_deploy/native/{LOG_NAME})" if (FOLDER / LOG_NAME).is_file() else ""
    return f"moh-deploy was built without CPU kernels: {reason}{more}"
