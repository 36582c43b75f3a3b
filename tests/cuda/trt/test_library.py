"""The library as CMake builds it with nvcc: what it needs where it is loaded, and what it exports.

Stand-ins are in the place of the kernels, which take long to compile.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import nvcc
from tests.cuda.trt import builds
from tests.cuda.trt.rtx import build
from tests.nightly import nightly
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES

# Of every Linux.
SYSTEM = {"libc", "libm", "libdl", "libpthread", "librt", "ld-linux-x86-64", "ld-linux-aarch64"}

pytestmark = nightly  # nvcc builds the plugin and all kernels


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        compiler = nvcc.compiler()
    except nvcc.NoCompiler as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cmake")
    options = [
        *("-DMOH_CPU=OFF", "-DMOH_CUDA=ON", "-DMOH_CUDA_ARCHITECTURES=80"),
        f"-DCMAKE_CUDA_COMPILER={compiler}",
        f"-DTENSORRT_INCLUDE_DIR={builds.required_headers()}",
    ]
    _run("cmake", "-S", _sources(folder), "-B", folder / "build", *options)
    _run("cmake", "--build", folder / "build", "--target", "moh_plugin", "--parallel", "2")
    return folder / "build" / "libmoh_plugin.so"


def _sources(folder: Path) -> Path:
    """Copy the sources, with stand-ins in the place of the kernels."""
    plugins = folder / "plugins"
    shutil.copytree(builds.PLUGINS, plugins, ignore=shutil.ignore_patterns("cpu", "emu"))
    (folder / "moh_deploy").mkdir()
    shutil.copy(builds.ROOT / "moh_deploy" / "__init__.py", folder / "moh_deploy")
    shutil.copy(builds.HERE / "fake_kernels.cc", plugins / "cuda" / "launch" / "fake_kernels.cu")
    (plugins / "cuda" / "sources.cmake").write_text(
        "set(MOH_CUDA_SOURCES launch/fake_kernels.cu)\nset(MOH_CUDA_CONFORMANCE_SOURCES)\n"
    )
    return plugins


def _run(*command: str | Path) -> str:
    ran = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
    return ran.stdout


def test_it_exports_its_entry_points_and_nothing_else(library: Path):
    symbols = _run("nm", "-D", "--defined-only", library)
    assert sorted(line.split()[-1] for line in symbols.splitlines()) == [*builds.EXPORTS]


def test_it_needs_nothing_that_a_linux_may_lack(library: Path):
    """No TensorRT, no CUDA runtime or driver, no C++ runtime of a certain version."""
    dynamic = _run("readelf", "-d", library)
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "NEEDED" in line]
    assert {name.split(".so")[0] for name in needed} <= SYSTEM


def test_engines_are_built_with_it(library: Path, tmp_path: Path):
    case = next(c for c in OP_CASES["MoHAttention"] if c.dtype == "bfloat16")
    built = build(case_model(case), tmp_path, library=library)
    assert built.plugins == ["MoHAttention"]
    assert b"MoHAttention" in built.engine


def test_a_registry_loads_it(library: Path):
    pytest.importorskip("tensorrt_lean_bindings", reason="pip install 'moh-deploy[test-tensorrt]'")
    found = json.loads(
        _run(sys.executable, builds.HERE / "lean_registry.py", library).splitlines()[-1]
    )
    assert found["after"] == ["MoHAggregatedAttention", "MoHAttention", "MoHRouter"]
