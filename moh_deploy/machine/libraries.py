"""Load native libraries for NVIDIA GPUs to see whether they work."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.device_code import DeviceCode, device_code

ORT_CUDA_NAME = "libmoh_ort_cuda.so"
_BUILD_ORT_CUDA = f"make cuda && cp build/cuda/{ORT_CUDA_NAME} moh_deploy/native/"


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

    def __str__(self) -> str:
        machine = [f"sm_{number}" for number in self.code.machine]
        code = ", ".join(machine + [f"compute_{number} (PTX)" for number in self.code.ptx])
        triton = ", ".join(self.triton) or "none"
        return f"{self.path}, code for {code or 'no GPU'}; attention kernels of Triton: {triton}"


def probe_ort_cuda() -> LibraryFacts | Failed:
    """Load the operators for ONNX Runtime's CUDA provider, and register them."""
    path = native.FOLDER / ORT_CUDA_NAME
    found = probe_library(path, "moh_ort_cuda", command=_BUILD_ORT_CUDA)
    if isinstance(found, Failed):
        return found
    # Loading proves little: ONNX Runtime may still refuse the operators, for its version say.
    registered = ask(_registered, str(path))
    return registered if isinstance(registered, Failed) else found


def probe_library(path: Path, prefix: str, *, command: str) -> LibraryFacts | Failed:
    """Load a library whose functions begin with `prefix`, and that a command builds."""
    how_to_build = f"in the sources of moh-deploy: {command}"
    if not os.path.isfile(path):
        return Failed(f"there is no {path.name} in {path.parent}", how_to_build)
    # In another process: a library of another machine may crash this one as it is loaded.
    loaded = ask(_triton_kernels, str(path.resolve()), prefix)
    if isinstance(loaded, Failed):
        return Failed(f"{path}: {loaded.why}", loaded.fix or how_to_build)
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
