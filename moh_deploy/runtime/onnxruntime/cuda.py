"""Run a package on an NVIDIA GPU, by the CUDA provider of ONNX Runtime's wheel `onnxruntime-gpu`.

Where the provider cannot start, ONNX Runtime computes on the CPU and says so on stderr. Here that
is an error. `session.disable_cpu_ep_fallback` is no way to tell: it refuses every model with a node
on the CPU, and ONNX Runtime puts the arithmetic of shapes there on purpose.
"""

from __future__ import annotations

import ctypes
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.errors import BackendError
from moh_deploy.native import INSTALL_ORT_GPU
from moh_deploy.package import ComputeType, OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS, Variant
from moh_deploy.runtime.kernel_use import KernelUse, choose_kernels
from moh_deploy.runtime.onnxruntime.runner import OrtRunner, calling_ort
from moh_deploy.runtime.onnxruntime.session import open_session, path_or_bytes, runtime_name
from moh_deploy.system.nvidia_driver import NO_GPU, Gpu, read_driver

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDER = "CUDAExecutionProvider"
# Else products of float32 are rounded to TF32, which keeps ten bits, on GPUs that have it.
_OPTIONS = {"use_tf32": "0"}
_OR_THE_CPU = "--runtime onnxruntime runs on the CPU."


def open_on_cuda(source: OnnxPackage | Path, variant: Variant = AS_IT_IS) -> OrtRunner:
    """Load a model into a session on the first GPU; takes and raises what `open_session` does.

    Raises:
        BackendError: Besides, there is no CUDA provider, no GPU, or the provider does not start.
    """
    gpu, name = require_cuda(), cuda_name()
    runner = open_session(source, variant, device="cuda", create=_create_session)
    found = replace(runner.description, runtime=name, device=gpu.name)
    return replace(runner, description=found)


def cuda_name() -> str:
    """Return `ONNX Runtime 1.31.1 (CUDA)`; raises as `require_cuda` does."""
    require_cuda()
    return f"{runtime_name()} (CUDA)"


def choose_cuda_kernels(variant: Variant, compute_type: ComputeType) -> KernelUse:
    """Decide which library MoH nodes run on; raises as `require_cuda` and `choose_kernels` do."""
    require_cuda()
    return choose_kernels(
        variant.kernels, library=variant.library, compute_type=compute_type, on_gpu=True
    )


def require_cuda() -> Gpu:
    """Return the GPU that sessions compute on.

    Raises:
        BackendError: ONNX Runtime cannot be imported or has no CUDA provider, or there is no GPU.
    """
    name = runtime_name()
    import onnxruntime as ort

    providers = ort.get_available_providers()
    if PROVIDER not in providers:
        raise BackendError(
            f"{name} has the providers {', '.join(providers)}, expected {PROVIDER}.",
            hint=f"Exchange the wheel: {INSTALL_ORT_GPU}. {_OR_THE_CPU}",
        )
    try:
        return read_driver().gpus[0]
    except BackendError as error:
        raise BackendError(
            f"ONNX Runtime's CUDA provider needs an NVIDIA GPU: {error.message}.",
            hint=f"{NO_GPU[0].upper()}{NO_GPU[1:]}. {_OR_THE_CPU}",
        ) from error


def _create_session(content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    import onnxruntime as ort

    # CUDA's libraries in the wheels that the extras of onnxruntime-gpu install are on no path. What
    # it misses it prints to stdout, where a command's answer belongs; the error below has it, too.
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with redirect_stdout(StringIO()):
            ort.preload_dlls()
    failure: BackendError | None = None
    try:
        session = calling_ort(
            "loading the model into its CUDA provider",
            lambda: ort.InferenceSession(
                path_or_bytes(content),
                options,
                providers=[(PROVIDER, _OPTIONS)],
                enable_fallback=0,  # an error of the provider stays one
            ),
        )
        if PROVIDER in session.get_providers():
            return session
    except BackendError as error:
        failure = error
    # Without the provider MoH nodes that our library is registered for have no kernel at all: that
    # error says nothing of the reason.
    why = _why_not_loaded()
    if why is None and failure is not None:
        raise failure
    raise BackendError(
        f"{runtime_name()} cannot load its CUDA provider: {why or 'its line on stderr says why'}.",
        hint="Install the libraries of CUDA and cuDNN that it was built with: pip install"
        f" 'onnxruntime-gpu[cuda,cudnn]'. {_OR_THE_CPU}",
    ) from failure


def _why_not_loaded() -> str | None:
    """Return the linker's reason why the provider's library does not load; None if it does."""
    import onnxruntime as ort

    # Only after ONNX Runtime has tried: the library needs another one that it loads first.
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return None
