import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moh_deploy.machine import tools
from moh_deploy.machine.tools import ToolFacts, main, probe_tools
from tests.fakes import Fakes


@pytest.mark.parametrize(
    ("tool", "pattern"), [("nvcc", r"V(\d+\.\d+)\."), ("cmake", r"(\d+\.\S+)")]
)
def test_tools_of_this_machine(tool: str, pattern: str):
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"no {tool}")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    match = re.search(pattern, said)
    assert getattr(probe_tools(), tool) == ToolFacts(tool, Path(path), match.group(1))


def test_nvcc_is_found_in_cuda_home(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    (fakes.folder / "bin").mkdir()
    fakes.program("bin/nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.99'")
    monkeypatch.setenv("CUDA_HOME", str(fakes.folder))
    monkeypatch.setenv("PATH", str(fakes.folder))
    tools = probe_tools()
    assert tools.nvcc == ToolFacts("nvcc", fakes.folder / "bin" / "nvcc", "12.4")
    assert not tools.nvcc.at_least((12, 8))
    assert tools.nvcc.at_least((11, 9))
    assert tools.cmake == ToolFacts("cmake", None, None)
    assert not tools.cmake.at_least((0, 0))


def test_the_compiler_is_what_cxx_says(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    fakes.program("c++", "echo 'c++ (Debian) 12.2.0'")
    fakes.program("launcher", 'echo "$1 (Debian) 14.1.0"')
    for said, name, version in (
        ("launcher g++", "launcher g++", "14.1.0"),
        ("", "c++", "12.2.0"),
        (None, "c++", "12.2.0"),
    ):
        monkeypatch.delenv("CXX", raising=False)
        if said is not None:
            monkeypatch.setenv("CXX", said)
        assert probe_tools().compiler == ToolFacts(name, fakes.folder / name.split()[0], version)


def test_headers_are_found_where_the_variable_says(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", f"/nowhere:{fakes.folder}")
    assert probe_tools().headers["TensorRT"] != fakes.folder
    (fakes.folder / "NvInferRuntime.h").touch()
    assert probe_tools().headers["TensorRT"] == fakes.folder


def test_headers_of_the_extra_are_found(fakes: Fakes):
    (fakes.folder / "kernel_lens" / "include" / "tensorrt").mkdir(parents=True)
    (fakes.folder / "kernel_lens" / "__init__.py").touch()
    folder = fakes.folder / "kernel_lens" / "include" / "tensorrt"
    (folder / "NvInferRuntime.h").touch()
    found = probe_tools().headers["TensorRT"]
    assert found == folder or Path("/usr") in getattr(found, "parents", ())


def test_make_is_told_what_doctor_finds(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (fakes.folder / "bin").mkdir()
    fakes.program("bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    fakes.program("cmake", "echo 'cmake version 3.31.6'")
    fakes.program("c++", "echo 'c++ (Debian) 12.2.0'")
    monkeypatch.setenv("CUDA_HOME", str(fakes.folder))
    monkeypatch.setenv("PATH", str(fakes.folder))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(fakes.folder))
    (fakes.folder / "NvInferRuntime.h").touch()
    assert main() == 0
    assert capsys.readouterr().out.split() == [
        f"-DTENSORRT_INCLUDE_DIR={fakes.folder}",
        f"-DCMAKE_CUDA_COMPILER={fakes.folder}/bin/nvcc",
    ]


def test_make_says_in_a_line_what_is_missing_and_where_it_looked(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tools, "_INCLUDE_ROOTS", ("/none",))
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(fakes.folder))
    fakes.program("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    fakes.program("cmake", "echo 'cmake version 3.31.6'")
    fakes.program("c++", "echo 'c++ (Debian) 12.2.0'")
    assert main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"(NvInferRuntime.h) were not found in {fakes.folder}, /none; pip install" in line
    assert line.endswith("make plugin TENSORRT_INCLUDE_DIR=DIR")
