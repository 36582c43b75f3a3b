"""Look for the native libraries for NVIDIA GPUs, and load them to see whether they work."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.device_code import DeviceCode, device_code
from moh_deploy.runtime.tensorrt.plugin_library import PLUGIN_NAME

ORT_CUDA_NAME = "libmoh_ort_cuda.so"
_COMMANDS = {
    PLUGIN_NAME: "make plugin",
    ORT_CUDA_NAME: f"make cuda && cp build/cuda/{ORT_CUDA_NAME} moh_deploy/native/",
}


@dataclass(frozen=True)
class LibraryFacts:
    """A native library of this version of moh-deploy that can be loaded.

    Attributes:
        code: Which GPUs it has code for.
        cuda: Major version of CUDA that a driver has to take; None: it does not say.
        triton: Attention kernels that Triton compiled for it: `sm_90 float16 128`, ...
    """

    path: Path
    code: DeviceCode
    cuda: int | None = None
    triton: tuple[str, ...] = ()


def probe_plugin(given: Path | None = None) -> LibraryFacts | Failed:
    """Load the plugin library for TensorRT, the given one or the installation's."""
    found = _probe(given or native.FOLDER / PLUGIN_NAME, PLUGIN_NAME, "moh_plugin")
    if isinstance(found, Failed):
        return found
    cuda = ask(_plugin_cuda, str(found.path.resolve()))
    return replace(found, cuda=None if isinstance(cuda, Failed) else cuda)


def probe_ort_cuda() -> LibraryFacts | Failed:
    """Load the operators for ONNX Runtime's CUDA provider, and register them."""
    path = native.FOLDER / ORT_CUDA_NAME
    found = _probe(path, ORT_CUDA_NAME, "moh_ort_cuda")
    if isinstance(found, Failed):
        return found
    # Loading proves little: ONNX Runtime may still refuse the operators, for its version say.
    registered = ask(_registered, str(path))
    return registered if isinstance(registered, Failed) else found


def _probe(path: Path, name: str, prefix: str) -> LibraryFacts | Failed:
    """Load a library whose functions begin with `prefix`."""
    if not os.path.isfile(path):
        return Failed(f"there is no {name} in {path.parent}", _how_to_build(name))
    # In another process: a library of another machine may crash this one as it is loaded.
    loaded = ask(_triton_kernels, str(path.resolve()), prefix)
    if isinstance(loaded, Failed):
        return Failed(f"{path}: {loaded.why}", loaded.fix or _how_to_build(name))
    return LibraryFacts(path, device_code(path), triton=loaded)


def _registered(path: str) -> bool:
    """Register a library of operators with ONNX Runtime."""
    import_module("onnxruntime").SessionOptions().register_custom_ops_library(path)
    return True


def _triton_kernels(path: str, prefix: str) -> tuple[str, ...]:
    """Load a native library of this version, and ask which kernels of Triton it holds."""
    library = ctypes.CDLL(path)
    # Plugins and moh-deploy share the meaning of attributes, which may change with any version.
    version = _text(library, f"{prefix}_version")
    if version is None:
        raise BackendError(f"it is no library of moh-deploy: it has no function {prefix}_version")
    if version != __version__:
        raise BackendError(f"it belongs to moh-deploy {version}, this is {__version__}")
    return tuple((_text(library, f"{prefix}_triton_kernels") or "").splitlines())


def _text(library: ctypes.CDLL, name: str) -> str | None:
    """Return what a function of a library says, or None if it has no such function."""
    function = getattr(library, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    text: str = function().decode()
    return text


def _plugin_cuda(path: str) -> int | None:
    """Load the plugin library, and ask it for the version of CUDA that it needs."""
    function = getattr(ctypes.CDLL(path), "moh_plugin_cuda", None)
    return None if function is None else int(function())


def _how_to_build(name: str) -> str:
    return f"in the sources of moh-deploy: {_COMMANDS[name]}"
