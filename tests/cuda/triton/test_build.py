"""The library as CMake builds it with nvcc, with Triton and without: what it holds."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import nvcc
from tests.cuda.libraries import PLUGINS, copy_sources
from tests.cuda.triton.codes import variants
from tests.nightly import nightly

pytestmark = nightly  # nvcc compiles some of the library, and Triton every kernel

_SOURCES = """
set(MOH_CUDA_SOURCES launch/attention_plan.cu launch/status.cu launch/triton_attention.cu)
set(MOH_CUDA_WITHOUT_TRITON launch/triton_code_none.cu)
set(MOH_CUDA_CONFORMANCE_SOURCES)
"""
"""Of plugins/cuda/sources.cmake: what the list of kernels takes. The rest takes nvcc minutes."""


def _kernels(folder: Path, python: str) -> list[str]:
    """Build a library and return the kernels of Triton that it says it has."""
    plugins = copy_sources(folder)
    (plugins / "cuda" / "sources.cmake").write_text(_SOURCES)
    options = [
        *("-DMOH_CPU=OFF", "-DMOH_CUDA=ON", "-DMOH_CUDA_ARCHITECTURES=90"),
        f"-DCMAKE_CUDA_COMPILER={nvcc.compiler()}",
        f"-DMOH_TRITON_PYTHON={python}",
    ]
    build = folder / "build"
    _run("cmake", "-S", str(plugins), "-B", str(build), *options)
    _run("cmake", "--build", str(build), "--target", "moh_cuda")
    library = _loaded_lazily(build / "libmoh_cuda.so")
    library.moh_cuda_triton_kernels.restype = ctypes.c_char_p
    return library.moh_cuda_triton_kernels().decode().splitlines()


def _loaded_lazily(path: Path) -> ctypes.CDLL:
    """Load a library some of whose functions are in sources that were left out.

    ctypes alone asks for all of them at once; here a function is looked for when it is called.
    """
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    handle = dlopen(str(path).encode(), os.RTLD_LAZY)
    assert handle, path
    return ctypes.CDLL(str(path), handle=handle)


def _run(*command: str) -> None:
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.usefixtures("needs_nvcc", "needs_triton")
def test_a_library_that_is_built_with_triton_holds_every_kernel(tmp_path: Path):
    assert _kernels(tmp_path, sys.executable) == [str(variant) for variant in variants.VARIANTS]


@pytest.mark.usefixtures("needs_nvcc")
def test_a_library_that_is_built_without_triton_holds_none(tmp_path: Path):
    assert _kernels(tmp_path, "") == []


def test_the_sources_here_are_the_librarys():
    listed = (PLUGINS / "cuda" / "sources.cmake").read_text()
    named = [word for word in _SOURCES.replace(")", " ").split() if word.startswith("launch/")]
    assert [name for name in named if name not in listed] == []
