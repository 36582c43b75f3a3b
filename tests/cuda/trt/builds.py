"""Libraries that the tests of the plugin need, built with the C++ compiler or nvcc.

Builds are kept in `build/cuda-trt/`, by what went into them: a second run compiles nothing.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

import moh_deploy
from tests.kept_builds import COMPILER, build_once, digest_of

ROOT = Path(__file__).resolve().parents[3]
PLUGINS = ROOT / "plugins"
HERE = Path(__file__).parent
BUILDS = ROOT / "build" / "cuda-trt"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations")
_PARTS = ("MAJOR", "MINOR", "PATCH")
_LINKED = ("-Wl,-z,defs", "-Wl,--build-id", "-ldl")
PROGRAM = _LINKED
SHARED = ("-fPIC", "-shared", "-fvisibility=hidden", *_LINKED)
OBJECT = ("-fPIC", "-fvisibility=hidden", "-r", "-nostdlib")
"""What is built: a program, a shared library, or several sources as one object for others."""
EXPORTS = (
    *("getCreators", "moh_plugin_cuda", "moh_plugin_table", "moh_plugin_triton_kernels"),
    *("moh_plugin_version", "setLoggerFinder"),
)
"""What the plugin library exports, in order."""


def plugin_sources() -> list[Path]:
    return sorted((PLUGINS / "cuda" / "trt").rglob("*.cc"))


def tensorrt_headers() -> list[Path]:
    """Return folders of TensorRT's headers: those of a Python package, and any that are named.

    `TENSORRT_INCLUDE_DIR` may name several, separated by colons.
    """
    named = os.environ.get("TENSORRT_INCLUDE_DIR", "")
    packaged = importlib.util.find_spec("kernel_lens")
    found = [Path(folder) for folder in named.split(os.pathsep) if folder]
    if packaged is not None and packaged.origin is not None:
        found.insert(0, Path(packaged.origin).parent / "include" / "tensorrt")
    return found


def required_headers() -> Path:
    folders = tensorrt_headers()
    if not folders:
        pytest.skip("no headers of TensorRT: pip install 'moh-deploy[test-tensorrt]'")
    return folders[0]


def version_of(headers: Path) -> str:
    """Return the version of TensorRT's headers, such as 10.14.1."""
    text = (headers / "NvInferVersion.h").read_text()
    # Older headers give the number itself, younger ones a name for it.
    found = [re.search(rf"define (?:NV_TENSORRT|TRT)_{part}\w* (\d+)", text) for part in _PARTS]
    return ".".join(match.group(1) for match in found if match)


def cuda_headers() -> Path:
    for folder in ("/usr/local/cuda/include", f"{os.environ.get('CUDA_HOME', '')}/include"):
        if Path(folder, "cuda_runtime_api.h").is_file():
            return Path(folder)
    pytest.skip("no headers of CUDA: cuda_runtime_api.h was not found")


def build(
    name: str,
    sources: Iterable[Path],
    *,
    headers: Path | None = None,
    libraries: tuple[Path, ...] = (),
    kind: tuple[str, ...] = SHARED,
) -> Path:
    """Build a shared library, or something else, with the C++ compiler and return its path.

    Args:
        headers: TensorRT's; None: of the Python package.
        libraries: To link with.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER}")
    command = [
        *(COMPILER, "-O1", *FLAGS),
        f'-DMOH_VERSION="{moh_deploy.__version__}"',
        *("-isystem", str(headers or required_headers()), "-isystem", str(cuda_headers())),
        *("-I", str(PLUGINS), "-I", str(PLUGINS / "include")),
        *(str(source) for source in sources),
        *(str(library) for library in libraries),
        *(f"-Wl,-rpath,{library.parent}" for library in libraries),
        *kind,
    ]
    content = digest_of(_inputs(), command)
    # Several versions of a library are in use at once: each has a folder of its own.
    library = BUILDS / content[:16] / f"{name}.{'o' if kind is OBJECT else 'so'}"

    def compile_it() -> None:
        library.parent.mkdir(parents=True, exist_ok=True)
        ran = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-6000:]

    return build_once(library, content, compile_it)


def _inputs() -> set[Path]:
    folders = (*(PLUGINS / "cuda" / f for f in ("trt", "registered")), PLUGINS / "include", HERE)
    return {p for f in folders for s in ("*.cc", "*.h") for p in f.rglob(s)}


def harness() -> Path:
    return build("harness", [HERE / "harness.cc"])


def plugin_on_fakes(headers: Path | None = None) -> Path:
    """The plugin library over kernels that the test answers for (fake_kernels.cc)."""
    fakes = HERE / "fake_kernels.cc"
    return build("plugin", [_plugin_object(headers), fakes], headers=headers)


def plugin_on_emulated(kernels: Path) -> Path:
    """The plugin library over the kernels that the emulator runs (tests/cuda/libraries.py)."""
    return build("plugin_emulated", [_plugin_object()], libraries=(kernels,))


def _plugin_object(headers: Path | None = None) -> Path:
    """What both of these have in common, compiled once."""
    return build("plugin_object", plugin_sources(), headers=headers, kind=OBJECT)
