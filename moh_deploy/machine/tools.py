"""Look for the compilers and headers that native code is built with."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OLDEST_NVCC = (12, 8)  # of the GPUs that plugins/cuda/nvcc.cmake compiles for
_INCLUDE_ROOTS = (
    "/usr/local/include",
    "/usr/include",
    f"/usr/include/{platform.machine()}-linux-gnu",
)
# File, variable that names its folder, and subfolders that it may be in.
_HEADERS = {
    "TensorRT": ("NvInferRuntime.h", "TENSORRT_INCLUDE_DIR", ("",)),
    "ONNX Runtime": (
        "onnxruntime_cxx_api.h",
        "ONNXRUNTIME_INCLUDE_DIR",
        ("", "onnxruntime", "onnxruntime/core/session"),
    ),
}


@dataclass(frozen=True)
class ToolFacts:
    """A program that is there or not."""

    name: str
    path: Path | None
    version: str | None  # As it says; None: it does not

    def at_least(self, oldest: tuple[int, int]) -> bool:
        """Tell whether it is there, and of this version or a later one."""
        if self.version is None:
            return False
        major, minor = map(int, self.version.split(".")[:2])
        return (major, minor) >= oldest


@dataclass(frozen=True)
class Tools:
    """The compilers and headers that native libraries are built with."""

    nvcc: ToolFacts
    cmake: ToolFacts
    compiler: ToolFacts
    # Name of each runtime that has some, to the folder; None: not found.
    headers: Mapping[str, Path | None]


def probe_tools() -> Tools:
    """Look for each, and ask it for its version."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return Tools(
        nvcc=_tool("nvcc", r"release (\d+\.\d+)", also_in=f"{home}/bin"),
        cmake=_tool("cmake", r"version (\d+\.\d+\S*)"),
        compiler=_tool(os.environ.get("CXX", "").strip() or "c++", r" (\d+\.\d+\.\d+)"),
        headers={name: _folder_of(*where) for name, where in _HEADERS.items()},
    )


def _tool(name: str, pattern: str, *, also_in: str = "") -> ToolFacts:
    # A compiler may have a launcher and options: `ccache g++`.
    program, *arguments = name.split()
    # CUDA's toolkit is often installed without being on PATH.
    path = shutil.which(program) or shutil.which(program, path=also_in)
    if path is None:
        return ToolFacts(name, None, None)
    command = [path, *arguments, "--version"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ToolFacts(name, Path(path), None)
    version = re.search(pattern, ran.stdout)
    return ToolFacts(name, Path(path), version.group(1) if version else None)


def _folder_of(header: str, variable: str, parts: tuple[str, ...]) -> Path | None:
    """Return where `make` would find a header; a variable may name the folder."""
    named = filter(None, os.environ.get(variable, "").split(os.pathsep))
    usual = (Path(root, part) for root in _INCLUDE_ROOTS for part in parts)
    # What somebody named counts before what is installed.
    folders = [*map(Path, named), *usual]
    # Where the extra `test-tensorrt` has TensorRT's headers, which `make plugin` takes.
    spec = importlib.util.find_spec("kernel_lens")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "include" / "tensorrt")
    return next((folder for folder in folders if (folder / header).is_file()), None)
