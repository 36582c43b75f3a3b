"""Ask for NVIDIA's driver and GPUs."""

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.system.nvidia_driver import NO_GPU, Gpu, read_driver

# Tell which GPUs a library has code for, from the file: nvcc embeds it in "fat binaries".
#
# A fat binary is a header and entries, each a header and the code for one architecture.

_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, of the code, arch
_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, _HEADER.size)
# Kinds of entries. PTX is compiled by the driver as it is loaded, machine code runs as it is.
_PTX, _MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class DeviceCode:
    """The GPUs that a library has code for."""

    machine: tuple[int, ...]  # Compute capabilities that it has machine code for: 86 for 8.6
    ptx: tuple[int, ...]  # Those that it has PTX for, which later ones run, too

    def __str__(self) -> str:
        """Return `8.0, 8.6 and, by PTX, 12.0 and later`."""
        machine = ", ".join(f"{number // 10}.{number % 10}" for number in self.machine)
        ptx = ", ".join(f"{number // 10}.{number % 10} and later" for number in self.ptx)
        return " and, by PTX, ".join(filter(None, [machine, ptx])) or "no GPU"

    def runs_on(self, compute_capability: int) -> bool:
        """Tell whether a GPU runs it: machine code is for its major version and what it has."""
        same_major = (number for number in self.machine if number // 10 == compute_capability // 10)
        return min(same_major, default=compute_capability + 1) <= compute_capability or any(
            number <= compute_capability for number in self.ptx
        )


def device_code(library: Path) -> DeviceCode:
    """Read the code for GPUs in a library, empty without any."""
    entries = set(_entries(library.read_bytes()))
    return DeviceCode(
        machine=tuple(sorted(arch for kind, arch in entries if kind == _MACHINE_CODE)),
        ptx=tuple(sorted(arch for kind, arch in entries if kind == _PTX)),
    )


def _entries(content: bytes) -> Iterator[tuple[int, int]]:
    """Return kind and architecture of every entry."""
    # Searched for in the whole file, which may hold one for each object that it was linked from.
    at = content.find(_MAGIC)
    while at >= 0:
        *_, size = _HEADER.unpack_from(content, at)
        # No further than the file: a header may claim anything.
        place, end = at + _HEADER.size, min(at + _HEADER.size + size, len(content) - _ENTRY.size)
        while place < end:
            kind, _, header_bytes, code_bytes, arch = _ENTRY.unpack_from(content, place)
            yield kind, arch
            # Always forward, even where an entry says that it is empty.
            place += max(header_bytes + code_bytes, _ENTRY.size)
        at = content.find(_MAGIC, at + 1)


# Load native libraries for NVIDIA GPUs to see whether they work.


@dataclass(frozen=True)
class LibraryFacts:
    """A native library of this version of moh-deploy that can be loaded."""

    path: Path
    code: DeviceCode  # Which GPUs it has code for
    # Major version of CUDA that a driver has to take; None: it does not say.
    cuda: int | None = None
    # Attention kernels that Triton compiled for it: `sm_90 float16 128`, ...
    triton: tuple[str, ...] = ()

    def __str__(self) -> str:
        machine = [f"sm_{number}" for number in self.code.machine]
        code = ", ".join(machine + [f"compute_{number} (PTX)" for number in self.code.ptx])
        triton = ", ".join(self.triton) or "none"
        return f"{self.path}, code for {code or 'no GPU'}; attention kernels of Triton: {triton}"


def probe_ort_cuda() -> LibraryFacts | Failed:
    """Load the operators for ONNX Runtime's CUDA provider, and register them."""
    path = native.FOLDER / native.ORT_CUDA_NAME
    found = probe_library(path, "moh_ort_cuda", command=native.BUILD_ORT_CUDA)
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
    version = _library_text(library, f"{prefix}_version")
    if version is None:
        raise BackendError(f"it is no library of moh-deploy: it has no function {prefix}_version")
    if version != __version__:
        raise BackendError(f"it belongs to moh-deploy {version}, this is {__version__}")
    return tuple((_library_text(library, f"{prefix}_triton_kernels") or "").splitlines())


def _library_text(library: ctypes.CDLL, name: str) -> str | None:
    """Return what a function of a library says, or None if it has no such function."""
    function = getattr(library, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    text: str = function().decode()
    return text


@dataclass(frozen=True)
class GpuFacts:
    """The driver, and what it drives."""

    driver: str | None  # Its version, of nvidia-smi; None: nvidia-smi does not say
    cuda: str  # The largest version of CUDA that it takes
    gpus: tuple[Gpu, ...]  # At least one


def probe_gpu() -> GpuFacts | Failed:
    """Ask the driver itself; nvidia-smi for its version only."""
    found = ask(read_driver)
    if isinstance(found, Failed):
        return Failed(found.why, NO_GPU)
    return GpuFacts(_driver_version(), found.cuda, found.gpus)


def _driver_version() -> str | None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    # The driver library tells the CUDA version, but not its own; nvidia-smi has one line a GPU.
    command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A driver that does not work prints its complaint on stdout: the return code tells.
    lines = ran.stdout.split()
    return lines[0] if ran.returncode == 0 and lines else None
