"""One source for every TensorRT from 10.0 to 11: it compiles with each set of headers at hand.

Those of 10.14 come from a Python package; `TENSORRT_INCLUDE_DIR` names others.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.nightly import nightly

HEADERS = builds.tensorrt_headers()


@pytest.mark.parametrize("headers", HEADERS or [None], ids=lambda h: h and builds.version_of(h))
def test_the_plugin_compiles_without_a_warning(headers: Path | None):
    library = builds.plugin_on_fakes(headers or builds.required_headers())
    assert _undefined(library, "nvinfer") == []


@pytest.mark.parametrize("headers", HEADERS, ids=builds.version_of)
def test_interfaces_are_those_of_the_first_headers(headers: Path):
    """A library of one version is driven by a harness of another, and the other way round."""
    for pair in [(HEADERS[0], headers), (headers, HEADERS[0])]:
        code = (
            "from tests.cuda.trt.host_plugin import Harness\n"
            "from pathlib import Path\n"
            f"h = Harness(Path({str(_harness(pair[0]))!r}),"
            f" Path({str(builds.plugin_on_fakes(pair[1]))!r}))\n"
            "fields = {'top_k': 2, 'num_shared_heads': 1, 'gate_mode': 'weighted'}\n"
            "plugin = h.create('MoHRouter', fields)\n"
            "print(plugin.output_shape([(2, 3, 5)]), plugin.clone().serialize()['top_k'])\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=builds.ROOT, capture_output=True, text=True
        )
        assert ran.stdout == "(2, 3, 6) 2\n", ran.stderr


def _harness(headers: Path) -> Path:
    return builds.build("harness", [builds.HERE / "harness.cc"], headers=headers)


@nightly
def test_nvcc_compiles_it_too(tmp_path: Path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc")
    include = ["-I", str(builds.PLUGINS), "-I", str(builds.PLUGINS / "include")]
    headers = ["-isystem", str(builds.required_headers())]
    for source in builds.plugin_sources():
        command = [nvcc, "-std=c++17", "-x", "cu", *include, *headers]
        command += [
            "-Xcompiler",
            "-Wall,-Werror",
            '-DMOH_VERSION="0"',
            "-arch=sm_80",
            "-ptx",
            str(source),
            "-o",
            "x.ptx",
        ]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def _undefined(library: Path, word: str) -> list[str]:
    return [line for line in _symbols(library, "--undefined-only") if word in line]


def _symbols(library: Path, which: str) -> list[str]:
    command = ["nm", "-D", which, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_nothing_but_the_entry_points_is_exported(fake_library: Path):
    symbols = [line.split() for line in _symbols(fake_library, "--defined-only")]
    strong = [symbol[-1] for symbol in symbols if symbol[-2] in "TDB"]
    assert sorted(strong) == ["fake_kernels", "fake_kernels_take_loads", *builds.EXPORTS]
