"""Look for the compilers and headers that native code is built with.

`python -m moh_deploy.machine.tools` prints the options of CMake with which `make plugin` finds what
is found here; if something is missing, it prints that to stderr, and the exit code is 1.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
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


GET_TENSORRT_HEADERS = (
    "pip install 'moh-deploy[test-tensorrt]' has them; or name the folder of an installed"
    " TensorRT's: make plugin TENSORRT_INCLUDE_DIR=DIR"
)


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
    """Return where a header is; a variable may name the folder."""
    folders = _folders(variable, parts)
    return next((folder for folder in folders if (folder / header).is_file()), None)


def _folders(variable: str, parts: tuple[str, ...]) -> list[Path]:
    """Return where a header may be, in the order in which they are searched."""
    named = filter(None, os.environ.get(variable, "").split(os.pathsep))
    usual = (Path(root, part) for root in _INCLUDE_ROOTS for part in parts)
    # A named tool counts before an installed one.
    folders = [*map(Path, named), *usual]
    # Where the extra `test-tensorrt` has TensorRT's headers.
    spec = importlib.util.find_spec("kernel_lens")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "include" / "tensorrt")
    return folders


def gaps_to_build(tools: Tools, headers: str, get_headers: str) -> list[tuple[str, str]]:
    """Return what a native library for GPUs cannot be built without: what is missing, and the fix.

    Args:
        headers: The runtime that it needs the headers of.
        get_headers: How to get them.
    """
    gaps = []
    oldest = ".".join(map(str, OLDEST_NVCC))
    install_cuda = f"install CUDA's toolkit {oldest} or newer, and put nvcc on PATH"
    if tools.nvcc.path is None:
        gaps.append(("nvcc was not found", install_cuda))
    elif not tools.nvcc.at_least(OLDEST_NVCC):
        gaps.append((f"nvcc is {tools.nvcc.version}, expected {oldest} or newer", install_cuda))
    for tool, fix in ((tools.cmake, "apt install cmake make"), (tools.compiler, "apt install g++")):
        if tool.path is None:
            gaps.append((f"{tool.name} was not found", fix))
    if tools.headers[headers] is None:
        file, variable, parts = _HEADERS[headers]
        searched = ", ".join(map(str, _folders(variable, parts)))
        gaps.append(
            (f"the headers of {headers} ({file}) were not found in {searched}", get_headers)
        )
    return gaps


def main() -> int:
    tools = probe_tools()
    gaps = gaps_to_build(tools, "TensorRT", GET_TENSORRT_HEADERS)
    for why, fix in gaps:
        print(f"make plugin: {why}; {fix}", file=sys.stderr)
    if gaps:
        return 1
    # CMake does not look into the usual folder of CUDA.
    print(f"-DTENSORRT_INCLUDE_DIR={tools.headers['TensorRT']}")
    print(f"-DCMAKE_CUDA_COMPILER={tools.nvcc.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
