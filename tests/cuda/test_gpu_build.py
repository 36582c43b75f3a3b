"""A stage of the GPU tests needs nvcc or a library, and says what is missing."""

import os
from pathlib import Path

import pytest

from tests.cuda.stage_runs import MACHINE, STUB, write_tool
from tests.gpu.build import BuildFailed, build, target, triton_code
from tests.gpu.report import Report
from tests.gpu.stage import NothingTested, Options, run_stage
from tests.nightly import nightly


def test_missing_compiler_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match=r"nvcc was not found.*--library FILE"):
        build(90)
    options = Options(None, "cuda", tmp_path, tmp_path, STUB, 10)
    with pytest.raises(NothingTested, match="nvcc was not found"):
        run_stage([MACHINE], Report(tmp_path / "stage.json", {}), options)


def test_missing_library_is_said(tmp_path: Path):
    options = Options(tmp_path / "none.so", "cuda", tmp_path, tmp_path, STUB, 10)
    with pytest.raises(NothingTested, match=r"there is no file .*none\.so"):
        run_stage([MACHINE], Report(tmp_path / "stage.json", {}), options)


@nightly
def test_compiler_errors_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_tool(tmp_path / "nvcc", "echo 'error: no such thing'; exit 2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tests.gpu.build.BUILDS", tmp_path / "build")
    monkeypatch.setattr("tests.gpu.build.find_spec", lambda _: None)  # Triton, which takes seconds
    with pytest.raises(BuildFailed, match="error: no such thing"):
        build(90)


@pytest.mark.parametrize("fault", ["from triton import knobs", "raise SystemExit('no assembler')"])
def test_triton_that_does_not_compile_costs_its_kernels_alone(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").touch()  # older than 3.4: it has no knobs
    (tmp_path / "compile.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tests.gpu.build._TRITON_SOURCES", tmp_path)
    code, reason = triton_code(tmp_path, "content")
    assert code.name == "triton_code_none.cu"
    assert ("knobs" if "knobs" in fault else "no assembler") in reason


@nightly
def test_what_ships_is_compiled_for_one_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_tool(
        tmp_path / "nvcc",
        f'echo "$@" >>{tmp_path}/log; while [ $# -gt 1 ]; do shift; done; touch "$1"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tests.gpu.build.BUILDS", tmp_path / "build")
    monkeypatch.setattr("tests.gpu.build.find_spec", lambda _: None)
    build(90)
    commands = (tmp_path / "log").read_text().splitlines()
    assert all("-gencode=arch=compute_80,code=[sm_90,compute_80]" in line for line in commands)
    build(90)  # nothing has changed
    assert (tmp_path / "log").read_text().splitlines() == commands
    shipped = Path("plugins/cuda/nvcc.cmake").read_text()
    assert target(90) == "-gencode=arch=compute_80,code=[sm_90,compute_80]"
    assert "-gencode=arch=compute_80,code=[${machine_codes},compute_80]" in shipped
