"""The worker of the first run: what this machine has, and jobs on engines.

Only a job loads what may be missing or broken here, so that it costs a step and not the run.
"""

import ctypes
import importlib.util
import platform
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.gpu.serve import serve
from tests.gpu.steps import Facts, Json, Missing

ENGINE_JOBS = ("export", "build", "verify", "time", "on_onnxruntime")
_PACKAGES = ("moh-deploy", "torch", "polygraphy", "onnx", "onnxruntime", "onnxruntime-gpu")
# Where NVIDIA's packages and containers put it, which need not be on the path.
TRTEXEC_FOLDERS = ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin")
# CUDA's driver is not used yet in this process, or has no context.
_IDLE = (0, 3, 201)


def main() -> None:
    jobs = {name: _of_engines(name) for name in ENGINE_JOBS}
    serve({"machine": machine, **jobs}, is_healthy)


def _of_engines(name: str) -> Callable[..., Facts]:
    def run(**arguments: object) -> Facts:
        facts: Facts = getattr(import_module("tests.gpu.engines"), name)(**arguments)
        return facts

    return run


def is_healthy() -> str:
    """Return why no later step can use the GPU from this process; empty if one can."""
    try:
        status = ctypes.CDLL("libcuda.so.1").cuCtxSynchronize()
    except (OSError, AttributeError):  # there is no driver
        return ""
    return "" if status in _IDLE else f"the GPU does not recover: CUDA error {status}"


def machine(backend: str, plugin: str | None) -> Facts:
    """Return versions, the GPU, and what is missing for which steps.

    Raises:
        Missing: There is no moh-deploy, PyTorch, TensorRT or plugin library.
    """
    module = backend.replace("-", "_")
    for name, how in (
        ("moh_deploy", "pip install moh_deploy-*.whl"),
        ("torch", "pip install torch"),
        (module, f"pip install {backend}"),
    ):
        if importlib.util.find_spec(name) is None:
            raise Missing(f"There is no Python package '{name}': {how}.")
    # Loaded first: it finds what other imports may lack.
    trt = import_module(module)
    from moh_deploy import native
    from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, HOW_TO_BUILD, find_plugin

    library = find_plugin(None if plugin is None else Path(plugin))
    if library is None:
        raise Missing(f"There is no libmoh_plugin.so in {native.FOLDER}. {HOW_TO_BUILD}")
    gpu, why_no_gpu = _gpu()
    lacks = {"gpu": why_no_gpu, "trtexec": _no_trtexec(), "onnxruntime-cuda": _no_cuda_provider()}
    if importlib.util.find_spec("polygraphy") is None:
        lacks["polygraphy"] = "Polygraphy is not installed: pip install polygraphy."
    found = FLAVOURS[backend].library_to_name()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "tensorrt": f"{FLAVOURS[backend].title} {trt.__version__}",
        "home": str(Path(import_module("moh_deploy").__file__ or "").parents[1]),
        "plugin": {"path": str(library.path), "sha256": library.sha256, "cuda": library.cuda},
        "library_to_name": None if found is None else [str(found[0]), found[1]],
        "gpu": gpu,
        "lacks": {need: why for need, why in lacks.items() if why},
    }


def _gpu() -> tuple[Json, str]:
    """Return the first GPU, or why there is none."""
    from moh_deploy.errors import BackendError
    from moh_deploy.system.nvidia_driver import read_driver
    from tests.gpu.machine import clocks

    try:
        driver = read_driver()
    except BackendError as error:
        return None, f"There is no GPU: {error.message}."
    gpu = driver.gpus[0]
    return {
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "memory_bytes": gpu.memory_bytes,
        "cuda_of_driver": driver.cuda,
        "nvidia_smi": clocks(0),
    }, ""


def _no_trtexec() -> str:
    places = [None, *TRTEXEC_FOLDERS]
    if any(shutil.which("trtexec", path=folder) for folder in places):
        return ""
    return "trtexec was not found: TensorRT's Debian packages, archives and containers hold it."


def _no_cuda_provider() -> str:
    from moh_deploy import native
    from moh_deploy.errors import BackendError
    from moh_deploy.runtime.onnxruntime.cuda import require_cuda

    try:
        require_cuda()
    except BackendError as error:
        return error.message
    if native.cuda_library() is None:
        return f"There is no {native.ORT_CUDA_NAME}: {native.BUILD_ORT_CUDA}."
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
